"""Each phone gets its own smaller CNN, pruned for the classes its owner meets, and nobody sees which these are."""
