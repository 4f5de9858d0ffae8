"""Names and defaults of metrics that command lines show. It imports no torch, so that `--help` does not wait for it."""

DETECTORS = ("auto", "inception", "vgg16", "efficientnet", "tiny")
DETECTOR_NAMES = f"[{'|'.join(DETECTORS)}|FILE.onnx]"
RESIZE_MODES = ("tf", "clean")
LPIPS_URL = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth"

NUM_SUBSETS, SUBSET_SIZE, DEGREE = 100, 1000, 3  # of KID

ORDERS = (-5, -3, -2, -1, 0, 1, 2, 3)  # of SID
DEFAULT_PROBES = 1000
PUBLISHED_PROBES = 500
