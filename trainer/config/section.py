"""The base class of every section of the configuration."""

import reprlib
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class OnlyWith:
    """Metadata of a field that has an effect only where another field of its section has one certain value.

    This takes the place of one class per value (a discriminated union): a section stays flat, so one override changes
    one key, and a configuration that was written with all its defaults is read back.

    Attributes:
        field: the other field's name.
        value: the value that it must have.
        required: whether that value cannot do without this field.
    """

    field: str
    value: str
    required: bool = False

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {ONLY_WITH: f"{self.field}: {self.value}"}


ONLY_WITH = "only_with"
"""Key of the JSON schema under which `OnlyWith` leaves its condition; write_schema.py moves it to the description."""


class Section(BaseModel):
    """A section of the configuration. The documentation of each field is the text below it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _conditions_are_met(self) -> Self:
        missing: dict[str, list[str]] = {}
        for name, info in type(self).model_fields.items():
            for condition in info.metadata:
                if not isinstance(condition, OnlyWith):
                    continue
                found, given = getattr(self, condition.field), getattr(self, name)
                if found == condition.value and condition.required and given == info.default:
                    missing.setdefault(f"{condition.field}={found}", []).append(name)
                if found != condition.value and given != info.default:
                    raise ValueError(
                        f"{name}={reprlib.repr(given)} has no effect with {condition.field}={found}: it belongs to "
                        f"{condition.field}={condition.value}. Leave it out, or type "
                        f"{name}={'null' if info.default is None else info.default}"
                    )
        for chosen, names in missing.items():
            raise ValueError(f"{chosen} needs {' and '.join(names)}")
        return self
