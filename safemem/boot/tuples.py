# SPDX-License-Identifier: MIT
"""`NamedTuple` as in `typing`, for the boot path.

Importing `typing` takes longer than the whole boot program without it, and brings `re` and
`enum`. A type checker sees the original. A module that uses this one needs
`from __future__ import annotations`: fields are found by name, annotations are never evaluated.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Fields(type):
        def __new__(cls, name, bases, space):
            if not bases:
                return super().__new__(cls, name, (tuple,), space)
            fields = tuple(space.get("__annotations__", ()))
            space["_field_defaults"] = {field: space.pop(field) for field in fields if field in space}
            for index, field in enumerate(fields):
                space[field] = property(lambda self, index=index: self[index])
            space["_fields"] = fields
            space["__slots__"] = ()
            return super().__new__(cls, name, bases, space)

    class NamedTuple(metaclass=_Fields):
        """A tuple whose items have names, and defaults if the class gives them."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            """Return a tuple of `values` in the order of the fields, the rest by name or default."""
            if len(values) != len(cls._fields):
                try:
                    rest = cls._fields[len(values) :]
                    values += tuple(named.pop(name) if name in named else cls._field_defaults[name] for name in rest)
                except KeyError as error:
                    raise TypeError(f"{cls.__name__}: `{error.args[0]}` is missing") from None
            if named or len(values) != len(cls._fields):
                raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
            return tuple.__new__(cls, values)

        def __getnewargs__(self):
            """Return what `copy` and `pickle` make an equal tuple from."""
            return tuple(self)

        def __repr__(self):
            """Return the tuple as it would be written."""
            return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._asdict().items())})"

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes):
            return type(self)(**{**self._asdict(), **changes})
