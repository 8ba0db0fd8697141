#!/bin/bash
# Build the custom operator package for Ascend: outputs/custom_opp/custom_opp_*.run
#
#   source /usr/local/Ascend/ascend-toolkit/set_env.sh
#   bash kernels/build.sh [--soc "ascend910b;ascend910_93"] [--vendor NAME] [--cann DIR] [--out DIR]
#
# Uses the toolkit's own project template (what msopgen generates; CANN 8 and 9), or CMakeLists.txt where there is none.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
soc="ascend910b;ascend910_93"
vendor=openpangu_posttrain
cann=${ASCEND_HOME_PATH:-/usr/local/Ascend/ascend-toolkit/latest}
out=$here/../outputs/custom_opp

fail() {
    echo "build.sh: $1" >&2
    exit 2
}

while [[ $# -gt 0 ]]; do
    case $1 in
        --soc) soc=$2 ;;
        --vendor) vendor=$2 ;;
        --cann) cann=$2 ;;
        --out) out=$2 ;;
        -h | --help)
            sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    [[ $# -ge 2 ]] || fail "$1 needs a value"
    shift 2
done
[[ -d $cann ]] || fail "no CANN toolkit at $cann: install it, source its set_env.sh, or give --cann DIR"
[[ $vendor =~ ^[A-Za-z0-9_]+$ ]] || fail "--vendor $vendor: use letters, digits and _"
mkdir -p "$out"
out=$(cd "$out" && pwd)

template=$cann/tools/op_project_templates/ascendc/customize
if [[ -d $template ]]; then
    project=$(mktemp -d)
    trap 'rm -rf "$project"' EXIT
    cp -aL "$template/." "$project/"  # the template's tools are links beside it
    chmod -R u+w "$project"
    rm -f "$project"/op_host/*.cpp "$project"/op_host/*.h "$project"/op_kernel/*.cpp "$project"/op_kernel/*.h
    cp "$here"/topk_distill_loss/op_host/*.cpp "$project/op_host/"
    cp "$here"/topk_distill_loss/op_kernel/*.h "$here"/topk_distill_loss/op_kernel/*.cpp "$project/op_kernel/"
    python3 - "$here/CMakePresets.json" "$project/CMakePresets.json" "$soc" "$vendor" "$cann" <<'PYTHON'
import json
import sys

source, target, soc, vendor, cann = sys.argv[1:]
with open(source, encoding="utf-8") as file:
    presets = json.load(file)
variables = presets["configurePresets"][0]["cacheVariables"]
variables["ASCEND_COMPUTE_UNIT"]["value"] = soc
variables["vendor_name"]["value"] = vendor
variables["ASCEND_CANN_PACKAGE_PATH"]["value"] = cann
with open(target, "w", encoding="utf-8") as file:
    json.dump(presets, file, indent=4)
PYTHON
    (cd "$project" && bash build.sh)
    cp "$project"/build_out/custom_opp_*.run "$out/"
else
    cmake -S "$here" -B "$out/cmake" "-DASCEND_COMPUTE_UNIT=$soc" "-Dvendor_name=$vendor" "-DASCEND_CANN_PACKAGE_PATH=$cann"
    cmake --build "$out/cmake" --target binary package -j
    cp "$out"/cmake/custom_opp_*.run "$out/"
fi
echo "built: $(ls "$out"/custom_opp_*.run)"
echo "install: bash $out/custom_opp_*.run    (into \$ASCEND_OPP_PATH, or --install-path=DIR and set ASCEND_CUSTOM_OPP_PATH)"
