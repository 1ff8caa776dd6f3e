"""The Grids that send messages: each is a `flwr.serverapp.Grid`, some wrap another one."""
