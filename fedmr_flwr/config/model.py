"""The section `model`: the network that is trained."""

from fedmr_flwr.config.sections import Section


class Model(Section):
    """What is trained.

    Attributes:
        name: `cnn` (the one for the image size), `mlp`, `logistic` (one linear layer), `resnet20`, `resnet20-fedmr`
            (the published code's bottlenecks), `resnet18`, `resnet18-groupnorm`, `vgg16`, `vgg-fedmr` (the published
            code's for 28×28), `mobilenet-v2`, `charlstm`; or `module:Class`, a model of your own.
        initialise: whether its weights are drawn from the seed; if not, they are those that its constructor leaves,
            such as trained ones. By default true, and false for a model of your own.
        features: for `moon`, the path of the module whose output is a representation, such as `backbone`; if not
            given, representations are the inputs of the last linear layer.
    """

    name: str = "cnn"
    initialise: bool | None = None
    features: str | None = None
