"""Functions of the native code are named in snake_case, as plugins/README.md says."""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pytest

from tests.nightly import sampled

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("plugins", "tests/cuda", "tools/cross")
SUFFIXES = (".h", ".cc", ".cu", ".cuh")

# Names that an interface demands without `override`: who calls them, and which.
DEMANDED = {
    "ONNX Runtime's loader": r"RegisterCustomOps",
    "Ort::CustomOpBase": r"CreateKernelV2|ComputeV2|Get[A-Z]\w*",
    "TensorRT's plugin registry": r"getCreators|setLoggerFinder|getPluginRegistry",
    "AddressSanitizer's instrumentation": r"__asan_\w+",
    "CUDA, for which emulator and fakes stand in": r"atomicAdd|cu(da)?[A-Z]\w*",
}

SNAKE_CASE = re.compile(r"[a-z_][a-z0-9_]*")
CONSTANT = re.compile(r"k[A-Z]\w*")  # of a class type: what it is made of is in parentheses, too
MACRO = re.compile(r"[A-Z][A-Z0-9_]*")
NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?\*/"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|__attribute__\(\(.*?\)\)|__launch_bounds__\([^()]*\)|\[\[.*?\]\]",
    re.DOTALL,
)
# A type, a space, a name and a parenthesis; `type*` is a type, and `a * b(` has a space too many.
DECLARED = re.compile(
    r"(?P<type>\w+|\w[*&]+|[\w\]>*&]>[*&]*)\s+"
    r"(?P<scope>(?:\w+(?:<[^<>()]*>)?::)*)(?P<name>\w+)(?:<[^<>()]*>)?\("
)
NO_TYPE = {
    *("return", "new", "throw", "else", "case", "goto", "delete", "and", "or", "not"),
    *("typename", "template", "using", "operator", "do", "define"),
    # With these alone before it, the name is a constructor's.
    *("explicit", "constexpr", "inline", "static", "virtual", "friend", "extern"),
    *("__device__", "__host__", "__forceinline__", "HWY_INLINE", "HWY_NOINLINE"),
}
VIRTUAL = re.compile(r"\bvirtual\b[^;{}()]*?(\w+)\(")
OVERRIDDEN = re.compile(r"(?<!~)\b(\w+)\([^;{}]*\)[^;{}()]*\boverride\b")


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in SUFFIXES)


def declared(code: str) -> Iterator[str]:
    """Names of the functions that C++ text declares or defines, and of variables made by a call."""
    text = NO_CODE.sub(" ", code)
    for found in DECLARED.finditer(text):
        scope = re.sub(r"<[^<>]*>", "", found["scope"]).split("::")
        constructor = len(scope) > 1 and scope[-2] == found["name"]
        if found["type"] not in NO_TYPE and not constructor:
            yield found["name"]


def inherited(texts: Iterable[str]) -> set[str]:
    """Names of functions that override those of a class which is not ours."""
    code = NO_CODE.sub(" ", "\n".join(texts))
    return set(OVERRIDDEN.findall(code)) - set(VIRTUAL.findall(code))


def in_another_style(code: str, inherited: Collection[str] = ()) -> set[str]:
    """Names in `code` that neither follow the rule nor are demanded by an interface."""
    allowed = (SNAKE_CASE, CONSTANT, MACRO, *map(re.compile, DEMANDED.values()))
    return {
        name
        for name in declared(code)
        if name not in inherited and not any(style.fullmatch(name) for style in allowed)
    }


def test_functions_are_named_in_snake_case():
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    assert len(texts) > 100
    demanded = inherited(texts.values())
    found = {path: in_another_style(text, demanded) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_names_of_a_base_class_are_demanded_unless_it_is_ours():
    ours = "class Op { virtual void Check() = 0; };"
    texts = [ours, "void Check() override;", "int32_t getNbOutputs() const noexcept override {"]
    assert inherited(texts) == {"getNbOutputs"}


@sampled(3)
@pytest.mark.parametrize("who", DEMANDED)
def test_every_exception_is_used(who: str):
    names = {name for path in sources() for name in declared(path.read_text())}
    assert any(re.fullmatch(DEMANDED[who], name) for name in names)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("HWY_INLINE VF LoadPart(const T* from, size_t count) {", {"LoadPart"}),
        ("template <class T>\nstd::vector<T> Row::ListOpen(int n) const {", {"ListOpen"}),
        ("const float* RowAt(size_t row) const;", {"RowAt"}),
        ("__global__ void __launch_bounds__(kThreads) Compact(const Params params) {", {"Compact"}),
        ("template <>\ninline uint32_t Pack<float>(float low) {", {"Pack"}),
        ("static const std::string& camelBack() { return name; }", {"camelBack"}),
        ("__attribute__((constructor)) void Register() {", {"Register"}),
        # No function, or one that is named by others.
        ("VF load_part(const T* from, size_t count) { return hn::Load(DF(), from); }", set()),
        (
            "class Plan {\n public:\n  explicit Plan(int n);\n  Plan(const Plan&) = delete;\n};",
            set(),
        ),
        ("}\n\nPlugin::Plugin(const Plugin& other) : info_(other.info_) {}", set()),
        ("constexpr Size kSize(3);  // void Comment(", set()),
        ('throw Refusal("void Text(");', set()),
        ("const VF sum = a * Product(b) + hn::Mul(a, b);", set()),
        ("const T* const key = view.template Key<T>(k);", set()),
        ("OrtStatus* RegisterCustomOps(OrtSessionOptions* options);", set()),
    ],
)
def test_functions_of_another_style_are_found(code: str, found: set[str]):
    assert in_another_style(code) == found
