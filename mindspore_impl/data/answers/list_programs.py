"""The bundled list programs: the expected answer is what executing the program gives, never a stored label."""

from mindspore_impl.data.list_programs import OPERATIONS, execute
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import Record


def expected(record: Record) -> str:
    """The executed program's result, as the answer is written. Raises UserError that names record and key."""
    try:
        letters, operations = record.meta["letters"], record.meta["operations"]
    except KeyError as error:
        raise UserError(f"record {record.id!r}: meta.{error.args[0]} is missing; list_programs needs it") from error
    for key, value in (("letters", letters), ("operations", operations)):
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise UserError(f"record {record.id!r}: meta.{key} is {value!r}; it must be an array of strings")
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown:
        raise UserError(f"record {record.id!r}: meta.operations has {unknown[0]!r}; known: {', '.join(OPERATIONS)}")
    return " ".join(execute(letters, operations))


def matches(record: Record, answer: str) -> bool:
    """Whether `answer` is exactly the result; only the whitespace around it is ignored."""
    return answer.strip() == expected(record)
