#!/usr/bin/env bash
# Sets up edge_sdk on a Jetson: JetPack's own Python, TensorRT and OpenCV, and a virtual environment that sees them.
# Does only what is not done yet, so it can be run again, as after an update of JetPack.
set -euo pipefail
shopt -s nullglob

readonly PYCUDA='pycuda>=2026.1,<2027'
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname -- "$here")
root='' l4t='' venv=$repository/.venv dry_run=false apt=true gpu=true image=false

usage() {
    cat <<'HELP'
usage: jetson/install.sh [options]

  --dry-run      print every command, run none
  --venv FOLDER  the virtual environment (default: .venv of this repository)
  --l4t RELEASE  say which Linux for Tegra it is, such as R36.4.3, where /etc/nv_tegra_release is not to be seen:
                 while a container image is built
  --no-apt       install no system packages; stop where one is missing
  --no-gpu       leave out pycuda and cuda-python: edge_sdk then computes on the CPU
  --image        a container image is built: there is no GPU yet for doctor to look at, and the compiler library of the
                 DLA comes from the host
  --root FOLDER  look at the system below this folder (for tests; give --dry-run too)
HELP
}

say() { printf 'install.sh: %s\n' "$*" >&2; }

refuse() { # what was found, and what to do
    say "error: $1"
    say "$2"
    exit 2
}

run() { # shows a command, and runs it unless this is a rehearsal
    local shown
    printf -v shown '%q ' "$@"
    printf '+ %s\n' "${shown% }"
    "$dry_run" || "$@"
}

value_of() { # option, what follows it
    [[ $# -ge 2 && -n $2 ]] || refuse "$1: expected a value." 'See jetson/install.sh --help'
    printf '%s' "$2"
}

parse() {
    while (($#)); do
        case $1 in
            --dry-run) dry_run=true ;;
            --no-apt) apt=false ;;
            --no-gpu) gpu=false ;;
            --image) image=true ;;
            --venv) venv=$(value_of "$@"); shift ;;
            --l4t) l4t=$(value_of "$@"); shift ;;
            --root) root=$(value_of "$@"); shift ;;
            -h | --help) usage; exit 0 ;;
            *) refuse "unknown option $1." 'See jetson/install.sh --help' ;;
        esac
        shift
    done
    [[ $venv == /* ]] || venv=$PWD/$venv
    if [[ -n $root ]] && ! "$dry_run"; then
        refuse '--root is for rehearsals.' 'Give --dry-run too.'
    fi
}

find_release() { # sets l4t, such as R36.4.3
    local line='' release=$root/etc/nv_tegra_release board=$root/proc/device-tree/compatible
    [[ -z $l4t ]] || return 0
    [[ ! -r $release ]] || read -r line <"$release" || true
    if [[ $line =~ R([0-9]+)\ \(release\),\ REVISION:\ ([0-9.]+) ]]; then
        l4t=R${BASH_REMATCH[1]}.${BASH_REMATCH[2]}
    elif [[ -r $board ]] && grep -qa 'nvidia,tegra' "$board"; then
        refuse 'a Jetson whose /etc/nv_tegra_release is not to be seen.' \
            'In a container: docker run -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro, or give --l4t.'
    else
        refuse 'this is not a Jetson.' "On a PC: pip install '.[desktop]', or '.[workstation]' to distil."
    fi
}

choose() { # sets what this JetPack brings: jetpack, python, cuda, opencv, bindings (of CUDA, for Python)
    local major minor rest
    [[ $l4t =~ ^R[0-9]+\.[0-9] ]] || refuse "--l4t: expected a release such as R36.4.3, got $l4t." 'See /etc/nv_tegra_release'
    IFS=. read -r major minor rest <<<"${l4t#R}"
    case $major in
        36)
            ((minor >= 4)) || refuse "$l4t is JetPack 6.0, whose TensorRT is 8.6; edge_sdk needs 10.3." \
                'Update to JetPack 6.1 or later: https://docs.nvidia.com/jetson, "over-the-air update"'
            jetpack='JetPack 6' python=3.10 cuda=12.6 opencv=libopencv-python bindings='cuda-python>=12.6,<13'
            ;;
        38) jetpack='JetPack 7.0 or 7.1' python=3.12 cuda=13.0 opencv=python3-opencv bindings='cuda-python>=13,<14' ;;
        39) jetpack='JetPack 7.2' python=3.12 cuda=13.2 opencv=python3-opencv bindings='cuda-python>=13,<14' ;;
        *)
            ((major > 35)) || refuse "$l4t is JetPack 5 or older, whose Python is older than 3.10." \
                'Flash JetPack 6.1 or later with SDK Manager: https://developer.nvidia.com/sdk-manager'
            refuse "$l4t: this version of edge_sdk knows R36.4 and later, R38 and R39." \
                'Look for a newer version of edge_sdk; to try all the same, give the nearest release that it knows: --l4t R39.2'
            ;;
    esac
    say "$jetpack ($l4t): Python $python, CUDA $cuda"
}

find_missing() { # sets missing, the system packages whose files are not there
    missing=()
    lacks "$root/usr/lib/python$python/ensurepip" && missing+=("python$python-venv")
    lacks "$root"/usr/lib/python3*/dist-packages/tensorrt && missing+=(python3-libnvinfer)
    lacks "$root"/usr/lib/python3*/dist-packages/cv2{,.*.so} && missing+=("$opencv")
    if "$gpu"; then
        lacks "$root/usr/include/python$python/Python.h" && missing+=("python$python-dev")
        lacks "$root/usr/bin/g++" && missing+=(build-essential)
        lacks "$root/usr/local/cuda-$cuda/bin/nvcc" && missing+=("cuda-toolkit-${cuda/./-}")
    fi
    # TensorRT of JetPack 6 does not load without the compiler of an accelerator, even where there is no accelerator.
    if [[ $jetpack == 'JetPack 6' ]] && ! "$image"; then
        lacks "$root"/usr/lib/libnvdla_compiler.so* "$root"/usr/lib/aarch64-linux-gnu/{,*/}libnvdla_compiler.so* &&
            missing+=(nvidia-l4t-dla-compiler)
    fi
    return 0
}

lacks() { # whether none of these files is there
    local path
    for path; do
        [[ ! -e $path ]] || return 1
    done
}

install_packages() {
    local -a as_root=()
    if ((${#missing[@]} == 0)); then
        say 'system packages: all there'
        return 0
    fi
    "$apt" || refuse "missing: ${missing[*]}." "sudo apt-get install ${missing[*]}"
    ((EUID == 0)) || as_root=(sudo)
    # A fresh JetPack updates itself in the background; wait for it.
    run "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=600 update
    run "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing[@]}"
}

make_environment() {
    local settings=$venv/pyvenv.cfg
    if [[ ! -e $settings ]]; then
        run "/usr/bin/python$python" -m venv --system-site-packages "$venv"
        return 0
    fi
    grep -q '^include-system-site-packages = true' "$settings" ||
        refuse "$venv does not see JetPack's packages." "Remove it, or give another folder: --venv FOLDER"
    grep -q "^version = ${python/./\\.}\." "$settings" ||
        refuse "$venv is not of JetPack's Python $python." "Remove it, or give another folder: --venv FOLDER"
}

install_gpu_packages() { # compiled here, against this JetPack's CUDA; again when that has changed
    local stamp=$venv/.edge-sdk-pycuda root_of_cuda=/usr/local/cuda-$cuda
    if [[ -r $stamp && $(<"$stamp") == "CUDA $cuda" ]]; then
        say "pycuda: there, for CUDA $cuda"
        return 0
    fi
    # pycuda finds CUDA by the nvcc on the path. A wheel that pip has kept may be of another CUDA.
    run env "CUDA_ROOT=$root_of_cuda" "PATH=$root_of_cuda/bin:/usr/local/bin:/usr/bin:/bin" \
        "$venv/bin/python" -m pip install --constraint "$here/constraints.txt" \
        --no-cache-dir --force-reinstall --no-deps "$PYCUDA"
    run "$venv/bin/python" -m pip install --constraint "$here/constraints.txt" "$PYCUDA" "$bindings"
    "$dry_run" || printf 'CUDA %s\n' "$cuda" >"$stamp"
}

main() {
    parse "$@"
    find_release
    choose
    find_missing
    install_packages
    make_environment
    if "$gpu"; then
        install_gpu_packages
    fi
    run "$venv/bin/python" -m pip install --constraint "$here/constraints.txt" "${repository}[jetson]"
    "$image" || run "$venv/bin/edge-sdk" doctor
}

main "$@"
