"""The bill of materials names the version, its direct dependencies, and compiled code."""

import moh_deploy
from tools.complete_sbom import complete


def test_sbom_has_the_version_and_the_code_in_the_kernel_library():
    sbom = {
        "metadata": {"component": {"bom-ref": "root", "name": "moh-deploy"}},
        "components": [{"bom-ref": "L1", "name": "numpy"}, {"bom-ref": "L2", "name": "mpmath"}],
        "dependencies": [{"ref": "L1"}, {"ref": "L2"}, {"ref": "root"}],
    }
    complete(sbom, {"libhwy-dev": "1.2.0-2+b2"})
    assert sbom["metadata"]["component"]["version"] == moh_deploy.__version__
    parts = {part["name"]: part for part in sbom["components"]}
    assert parts["libhwy-dev"]["purl"] == "pkg:deb/debian/libhwy-dev@1.2.0-2%2Bb2"
    assert "version" not in parts["libonnxruntime-dev"]
    assert parts["libc++"]["licenses"] == [{"expression": "Apache-2.0 WITH LLVM-exception"}]
    *_, root = sbom["dependencies"]
    compiled = {part["bom-ref"] for name, part in parts.items() if name.startswith("lib")}
    assert set(root["dependsOn"]) == {"L1", *compiled}
    assert sum(entry["ref"] == "root" for entry in sbom["dependencies"]) == 1
