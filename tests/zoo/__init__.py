"""A zoo of small models written as strangers would write them: what recognition is measured on."""

from tests.zoo.collection import ZOO
from tests.zoo.model import Expected, ExpectedLayer, ZooModel
from tests.zoo.rarities import MISSED

__all__ = ["MISSED", "ZOO", "Expected", "ExpectedLayer", "ZooModel"]
