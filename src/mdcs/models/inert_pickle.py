"""Tensors out of a PyTorch file of unknown origin, without running anything that it contains.

A PyTorch file holds a pickle, a small program whose instructions can import and call any function. The published MDCS checkpoints
name classes of their own training code, so that `torch.load(weights_only=True)` refuses them, and `weights_only=False` would run whatever
a file says. Here the instructions are read one by one, and a name in the file never becomes more than a pair of strings: the few names
that rebuild tensors and dictionaries are understood, the result of every other call is `INERT`, which does nothing.
"""

import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mdcs.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first number of the format before torch 1.6
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Name(NamedTuple):
    """A name in the file: `module`.`name`, not looked up."""

    module: str
    name: str


class Inert:
    """What a call of an unknown name yields."""


class Storage(NamedTuple):
    """Numbers in the file, not read yet."""

    dtype: torch.dtype
    key: str
    numel: int


class Lazy(NamedTuple):
    """A tensor in the file, not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, flat: Tensor) -> Tensor:
        """The tensor in its storage `flat`, which it may not leave."""
        if any(type(number) is not int or number < 0 for number in (self.offset, *self.size, *self.stride)):
            raise ValueError("a tensor has an impossible shape")
        count = math.prod(list(self.size))
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        if count > flat.numel() or (count and last >= flat.numel()):
            raise ValueError(f"a tensor of shape {self.size} is larger than its {flat.numel()} numbers")
        return flat.as_strided(self.size, self.stride, self.offset)


INERT = Inert()
MARK = Inert()
Load = Callable[[Storage], Tensor]  # reads a storage
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2")
PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")


def mapping(pairs: Iterable[Any]) -> dict[Any, Any]:
    """Those pairs whose key is a text or a number: keys are hashed, which for tuples nested in a cunning way takes forever."""
    return {key: value for key, value in pairs if isinstance(key, str | int)}


def called(function: Any, arguments: Any) -> Any:
    """The value of function(*arguments), for the names understood."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        return INERT
    if function == ("collections", "OrderedDict"):
        return mapping(arguments[0] if arguments else ())
    if function.module == "torch._utils" and function.name in REBUILD and isinstance(arguments[0], Storage):
        storage, offset, size, stride = arguments[:4]
        return Lazy(storage, offset, tuple(size), tuple(stride))
    if function.module == "torch._utils" and function.name in PARAMETER and isinstance(arguments[0], Lazy):
        return arguments[0]
    return INERT


def persistent(pid: Any) -> Storage:
    """The storage that a persistent id stands for."""
    kind, storage_type, key, _, numel, *view = pid
    if kind != "storage" or storage_type.module not in ("torch", "torch.cuda") or storage_type.name not in DTYPES or any(view):
        raise ValueError("its numbers are stored in a way that is not known here")
    if not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise ValueError("it has a storage without a name or a size")
    return Storage(DTYPES[storage_type.name], key, numel)


def unpickle(stream: BinaryIO | bytes, storages: dict[str, Storage]) -> Any:
    """The value of the pickle that begins here: plain Python values, `Lazy` tensors, and `INERT` in place of everything else.

    The stream is left behind the pickle's end. `storages` receives those that are mentioned.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    value: Any
    argument: Any

    def take(number: int) -> list[Any]:
        if len(stack) < number:
            raise ValueError("it takes more than there is")
        above = stack[len(stack) - number :]
        del stack[len(stack) - number :]
        return above

    def to_mark() -> list[Any]:
        number = next((number for number, value in enumerate(reversed(stack), 1) if value is MARK), None)
        if number is None:
            raise ValueError("it takes more than there is")
        return take(number)[1:]

    def pairs(flat: list[Any]) -> dict[Any, Any]:
        return mapping(zip(flat[::2], flat[1::2], strict=True))

    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME" | "READONLY_BUFFER":
                continue
            case "MARK":
                value = MARK
            case "NONE":
                value = None
            case "NEWTRUE" | "NEWFALSE":
                value = opcode.name == "NEWTRUE"
            case "DUP":
                value = stack[-1]
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                value = tuple(take(len(opcode.stack_before)))
            case "TUPLE":
                value = tuple(to_mark())
            case "EMPTY_LIST" | "LIST":
                value = to_mark() if opcode.name == "LIST" else []
            case "EMPTY_DICT" | "DICT":
                value = pairs(to_mark()) if opcode.name == "DICT" else {}
            case "GET" | "BINGET" | "LONG_BINGET":
                value = memo[argument]
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
                continue
            case "GLOBAL":
                value = Name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                value = Name(*take(2))
            case "REDUCE" | "NEWOBJ":
                value = called(*take(2))
            case "PERSID" | "BINPERSID":
                value = persistent(stack.pop() if argument is None else argument)
                storages[value.key] = value
            case "APPEND" | "APPENDS":
                added = take(1) if opcode.name == "APPEND" else to_mark()
                if isinstance(stack[-1], list):
                    stack[-1].extend(added)
                continue
            case "SETITEM" | "SETITEMS":
                added = take(2) if opcode.name == "SETITEM" else to_mark()
                if isinstance(stack[-1], dict):
                    stack[-1].update(pairs(added))
                continue
            case "POP" | "BUILD":  # BUILD: the state of an object, for example the version numbers of a state dict
                stack.pop()
                continue
            case "POP_MARK" | "ADDITEMS":
                to_mark()
                continue
            case "NEWOBJ_EX":
                take(3)
                value = INERT
            case "INST" | "OBJ" | "FROZENSET":
                to_mark()
                value = INERT
            case "EMPTY_SET" | "NEXT_BUFFER" | "EXT1" | "EXT2" | "EXT4":
                value = INERT
            case _:  # a number, a text or bytes
                value = argument
        stack.append(value)
    raise ValueError("it ends too early")


def open_zip(file: BinaryIO) -> tuple[Any, Load]:
    """Content and storages of the format since torch 1.6: a ZIP archive, not compressed, with one entry per storage."""
    archive = zipfile.ZipFile(file)
    folder = next((name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if folder is None:
        raise ValueError("it is an archive of something else")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise ValueError("it is compressed, which PyTorch files are not")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")

    def load(storage: Storage) -> Tensor:
        entry = archive.getinfo(f"{folder}data/{storage.key}")
        return numbers(storage, entry.file_size, lambda: archive.read(entry))

    return unpickle(archive.read(f"{folder}data.pkl"), {}), load


def open_legacy(file: BinaryIO) -> tuple[Any, Load]:
    """Content and storages of the format before torch 1.6: pickles of magic number, version, system, content, keys; then the storages."""
    storages: dict[str, Storage] = {}
    file.seek(0)
    if unpickle(file, {}) != LEGACY_MAGIC:
        raise ValueError("it begins like something else")
    unpickle(file, {})
    if unpickle(file, {}).get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    content, keys = unpickle(file, storages), unpickle(file, {})
    places = {}
    end = file.seek(0, 1), file.seek(0, 2)
    position = end[0]
    for key in keys:
        file.seek(position)
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storages[key].numel:
            raise ValueError("its storages are not those it announces")
        places[key] = position + 8
        position += 8 + numel * storages[key].dtype.itemsize

    def load(storage: Storage) -> Tensor:
        start, length = places[storage.key], storage.numel * storage.dtype.itemsize
        file.seek(start)
        return numbers(storage, end[1] - start, lambda: file.read(length))

    return content, load


def numbers(storage: Storage, available: int, read: Callable[[], bytes]) -> Tensor:
    """The storage's numbers, if there are that many bytes."""
    length = storage.numel * storage.dtype.itemsize
    if length > available:
        raise ValueError(f"a storage claims {length} bytes of {available}")
    return torch.frombuffer(bytearray(read()), dtype=storage.dtype, count=storage.numel) if length else torch.empty(0, dtype=storage.dtype)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file written by torch.save in its present or its old format: those at the top, or under "state_dict".

    UserError if the file is damaged, something else, or holds none.
    """
    return read_file(path)[0]


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[Any, Any]]:
    """`read_state_dict`, and all that is at the top of the file, tensors not read and `INERT` in place of objects."""
    loaded: dict[str, Tensor] = {}

    def read(tensor: Lazy, load: Load) -> Tensor:
        key = tensor.storage.key
        if key not in loaded:
            loaded[key] = load(tensor.storage)
        return tensor.read(loaded[key])

    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about texts with escapes, in the oldest pickles
            content, load = open_zip(file) if zipfile.is_zipfile(file) else open_legacy(file)
            top = content
            for wrapping in ("state_dict", "model"):
                if isinstance(content, dict) and isinstance(content.get(wrapping), dict):
                    content = content[wrapping]
            named = content.items() if isinstance(content, dict) else ()
            tensors = {name: read(value, load) for name, value in named if isinstance(name, str) and isinstance(value, Lazy)}
    except (OSError, EOFError, MemoryError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, struct.error, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a PyTorch file ({reason})") from error
    if not tensors:
        raise UserError(f"{path} holds no state dict (tensors by name, at the top or under state_dict)")
    return tensors, top
