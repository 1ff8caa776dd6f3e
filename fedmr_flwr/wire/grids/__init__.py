"""The Grids that carry messages: each a `flwr.serverapp.Grid`, some around another one."""
