"""Classes by name, and data that is held against the network's own classes."""

import numpy as np
import pytest

from fedcaptor.common.class_names import fitting_names, labels_of, named
from fedcaptor.common.errors import ConfigError, DataError

NAMES = ("T-shirt", "Coat", "Bag", "coat")


@pytest.mark.parametrize(
    ("given", "labels"),
    [(["bag", " T-shirt"], [0, 2]), (["2", 0], [0, 2]), (["Coat", "coat"], [1, 3]), (["7"], [7]), ([], [])],
)
def test_classes_are_given_by_label_or_by_name(given, labels):
    assert labels_of(given, NAMES).tolist() == labels
    assert labels_of(np.array([2, 0]), None).tolist() == [0, 2]


def test_a_name_that_nobody_knows_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="class 'hat' is none of T-shirt, Coat, Bag, coat"):
        labels_of(["hat"], NAMES)
    with pytest.raises(ConfigError, match="class 'COAT' is none of"):  # which of two?
        labels_of(["COAT"], NAMES)
    with pytest.raises(ConfigError, match="class 'hat' is no label, and nothing names the classes"):
        labels_of(["hat"], None)


def test_a_number_that_is_label_and_name_is_refused():
    with pytest.raises(ConfigError, match="class 1 is the label of '2' and the name of label 0"):
        labels_of(["1"], ("1", "2", "9"))
    assert labels_of(["9"], ("1", "2", "9")).tolist() == [2]
    assert labels_of(["1"], ("0", "1")).tolist() == [1]


def test_names_come_from_the_weights_or_from_the_data():
    assert fitting_names(2, ("a", "b"), ("0",), "data") == ("a", "b")
    assert fitting_names(2, None, ("a", "b"), "data") == ("a", "b")
    assert fitting_names(3, None, ("0", "1"), "data") is None
    assert named(np.array([1]), ("a", "b")) == ["b"]
    assert named(np.array([1]), None) == [1]


@pytest.mark.parametrize(
    ("outputs", "network", "data", "message"),
    [
        (2, None, ("a", "b", "c"), r"photos has 3 classes \(a, b, c\), the network 2"),
        (2, None, ("0", "1", "2"), "photos has 3 classes"),
        (3, None, ("a", "b"), r"photos has 2 classes \(a, b\), the network 3"),
        (2, ("a", "b"), ("b", "a"), "label 0 is 'b' in photos and 'a' in the network's weights"),
    ],
)
def test_data_of_other_classes_is_refused(outputs, network, data, message):
    with pytest.raises(DataError, match=message):
        fitting_names(outputs, network, data, "photos")
