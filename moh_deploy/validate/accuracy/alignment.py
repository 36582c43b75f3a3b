"""Check that token labels are shifted the right way against the tokens that the model is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.class_labels import Labelling


def same_tokens(labels: Array, inputs: Mapping[str, Array], labelling: Labelling) -> None:
    """Refuse labels that are scored at another position than they are meant for.

    Raises:
        ConfigError: They are the tokens that the model is given, or those already shifted.
    """
    for name, tokens in _alike(labels, inputs):
        # A model that sees a token scores well at naming it: the accuracy would be of nothing.
        if not labelling.shifted and _equal(labels, tokens, labelling.ignore):
            raise ConfigError(
                f"labels are the tokens of input '{name}', so each position would be scored with"
                " the token that it is given.",
                hint="If the next token is to be predicted: --shift-labels.",
            )
        # Shifted twice, each position would be scored with the token after the next.
        if labelling.shifted and _equal(labels[:, :-1], tokens[:, 1:], labelling.ignore):
            raise ConfigError(
                f"labels are those of input '{name}' shifted by one already.",
                hint="Leave out --shift-labels.",
            )


def _alike(labels: Array, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    for name, array in inputs.items():
        if array.dtype.kind in "iu" and array.shape == labels.shape and labels.ndim == 2:
            yield name, array


def _equal(labels: Array, tokens: Array, ignore: int) -> bool:
    counts = labels != ignore
    same = labels[counts] == tokens[counts]
    # A single label may be equal by chance; so many, all of them, are not.
    return bool(same.size > 1 and same.all())
