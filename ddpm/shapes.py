"""Array annotations with shapes: `Float[Tensor, "batch channels height width"]`.

The names come from jaxtyping, and the test suite checks every call against them. Training does not need the package:
if it is not installed, the annotations mean the plain array type.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int64, UInt8
    except ModuleNotFoundError:

        class _AnyShape:
            def __class_getitem__(cls, array_type_and_shape: tuple[Any, str]) -> Any:
                return array_type_and_shape[0]

        Bool = Float = Int64 = UInt8 = _AnyShape

__all__ = ["Bool", "Float", "Int64", "UInt8"]
