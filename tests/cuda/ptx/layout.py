"""Where the variables of an entry are, and which register each special one is kept in."""

from collections.abc import Mapping, Sequence

from tests.cuda.ptx.errors import SyntaxFault, Unsupported
from tests.cuda.ptx.syntax import Entry, Variable

# Generic addresses of memory that is not global begin here: no pointer of the host's does.
WINDOWS = {"shared": 1 << 56, "local": 2 << 56, "param": 3 << 56}
WINDOW_SHIFT = 56

SPECIAL_REGISTERS = tuple(
    f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"
)


class Layout:
    """Addresses and special registers of an entry.

    Attributes:
        static_shared_bytes: In front of the dynamic shared memory.
        local_bytes: Of a thread.
        param_bytes: Of all parameters.
    """

    def __init__(self, entry: Entry) -> None:
        self._specials: dict[str, int] = {}
        self._first_special = len(entry.register_types)
        self._addresses: dict[str, int] = {}
        shared = [variable for variable in entry.variables if variable.space == "shared"]
        # The dynamic memory is behind all other.
        self.static_shared_bytes = self._place(
            sorted(shared, key=lambda variable: variable.is_dynamic)
        )
        self.local_bytes = self._place([v for v in entry.variables if v.space == "local"])
        self.param_bytes = self._place(entry.params)

    @property
    def specials(self) -> Mapping[str, int]:
        """The special registers that are used, each with its index."""
        return self._specials

    def special(self, name: str) -> int:
        """Return the index of the register that holds a special one."""
        if name not in SPECIAL_REGISTERS:
            raise Unsupported(f"not interpreted: {name}")
        return self._specials.setdefault(name, self._first_special + len(self._specials))

    def address(self, name: str) -> int:
        """Return the address of a variable within its space."""
        if name not in self._addresses:
            raise SyntaxFault(f"no variable '{name}'.")
        return self._addresses[name]

    def _place(self, variables: Sequence[Variable]) -> int:
        end = 0
        for variable in variables:
            start = -(-end // variable.align) * variable.align
            self._addresses[variable.name] = start
            end = start + (0 if variable.is_dynamic else variable.size)
        return end
