"""``python -m segformer.ops`` prints which implementation of each operator runs when."""

from segformer.ops import table

print(table())
