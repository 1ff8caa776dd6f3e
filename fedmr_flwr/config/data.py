"""The section `data`: the data set, and what is read of it."""

from typing import Literal

from pydantic import Field, PositiveInt

from fedmr_flwr.config.paths import kind_and_path
from fedmr_flwr.config.sections import Section

# The kinds of files of a user's own that use an option of this section; no other data set does.
OPTION_KINDS = {
    "size": ("folder", "hf"),
    "label": ("csv", "hf"),
    "client": ("csv", "hf"),
    "image": ("hf",),
    "text": ("hf",),
}
# The data sets, and the kinds of files, that have no images.
_WITHOUT_IMAGES = ("breast-cancer", "shakespeare", "csv")
# The data sets that name the authors of no examples.
_WITHOUT_AUTHORS = (
    "breast-cancer", "cifar10", "cifar100", "cifar100-coarse", "digits", "fashion-mnist", "folder", "mnist",
)  # fmt: skip


class Data(Section):
    """The data set.

    Attributes:
        name: `digits`, `breast-cancer`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `cifar100-coarse`,
            `femnist`, `shakespeare`; `folder:PATH`, `csv:PATH`, `hf:NAME_OR_PATH`, `npz:FILE` or
            `module:function` for data of your own.
        normalisation: of images: as `published` with the data set; `measured`, by the mean and deviation of each
            channel of the training images; or `none`, pixels from 0 to 1.
        train_examples: use only so many training examples, as many of each class, drawn from the run's seed; all if
            not given. The test set stays whole.
        validation: the share of the training examples that is held out before the others are divided among the
            clients, stratified by label and, where it is known, by author, drawn from the run's seed. Models are
            scored on it instead of the test set, and metrics are named `validation-accuracy` and `validation-loss`.
        download: whether missing files may be downloaded.
        label: of `csv:` and `hf:`: the column with the labels; if not given, the one named `label`, `labels`,
            `fine_label`, `target`, `class` or `y`.
        client: of `csv:` and `hf:`: the column with the clients, for `partition.name=natural`.
        image: of `hf:`: the column with the images; not needed if there is only one.
        text: of `hf:`: the column with the texts; not needed if there is only one and no images.
        size: of `folder:` and `hf:`: the height and width to which images are resized, one number or `[H, W]`, not
            needed if all have the same; or the bytes of each text that are used, 80 if not given.
    """

    name: str = "digits"
    normalisation: Literal["published", "measured", "none"] = "published"
    train_examples: int | None = Field(None, ge=1)
    validation: float = Field(0.0, ge=0, lt=1)
    download: bool = False
    label: str | None = None
    client: str | None = None
    image: str | None = None
    text: str | None = None
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None

    @property
    def scored_on(self) -> Literal["test", "validation"]:
        """The set on which models are scored."""
        return "validation" if self.validation else "test"

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """The size of images."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def kind(self) -> str:
        """The kind of files of a user's own, such as `csv`; empty for a data set that we know."""
        return kind_and_path(self.name)[0]

    @property
    def has_images(self) -> bool:
        """Whether it may have images."""
        return (self.kind or self.name) not in _WITHOUT_IMAGES

    @property
    def has_authors(self) -> bool:
        """Whether it may name the authors of its examples."""
        return (self.kind or self.name) not in _WITHOUT_AUTHORS
