"""Heads for programs without an event loop: the operations of head_operations.py."""

from __future__ import annotations

from serve_client.head_operations import HeadOperations
from serve_client.transport import blocking


class Heads:
    """The heads that one caller may use. A head is named by its name or its state.

    A change that gets a head's state is refused with ``PreconditionFailedError`` if somebody else has changed the head
    since; with a name it is carried out all the same.
    """

    def __init__(self, operations: HeadOperations) -> None:
        self._operations = operations

    list = blocking(HeadOperations.list)
    get = blocking(HeadOperations.get)
    teach = blocking(HeadOperations.teach)
    add = blocking(HeadOperations.add)
    move = blocking(HeadOperations.move)
    remove = blocking(HeadOperations.remove)
    suggest = blocking(HeadOperations.suggest)
    suggestions = blocking(HeadOperations.suggestions)
    approve = blocking(HeadOperations.approve)
    reject = blocking(HeadOperations.reject)
    share = blocking(HeadOperations.share)
    roll_back = blocking(HeadOperations.roll_back)
    delete = blocking(HeadOperations.delete)
    export = blocking(HeadOperations.export)
