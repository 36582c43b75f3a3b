#!/usr/bin/env bash
# Export a checkpoint if one is given, verify the package, measure it if that is asked for, and leave
# reports: what action.yml runs, and what any other CI or person can. docs/ci.md lists the variables
# that it reads. It ends with the exit code of the command that said no, and only then not with 0.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${MOH_PYTHON:-python3}"
package=""
reports="${MOH_REPORTS:-moh-deploy-reports}"
# What has not run has not passed.
verify_verdict=not-run
bench_verdict=not-run
is_finished=no
child=""

# Without a gate bench could not have failed.
passed_or_measured='
import json, sys
print({True: "passed", None: "measured"}[json.load(open(sys.argv[1]))["passed"]])'

has_moh_deploy='
import importlib.util, sys
sys.exit(importlib.util.find_spec("moh_deploy") is None)'

main() {
    # A line break would begin another output of the step.
    [[ "$reports" != *[[:cntrl:]]* ]] || fail "MOH_REPORTS (input 'reports') holds a control character."
    remove_earlier_reports
    trap finish EXIT
    trap 'stop 130' INT
    trap 'stop 143' TERM HUP
    require_python
    package="$(trimmed "${MOH_PACKAGE:-}")"
    [[ -n "$package" ]] || fail "MOH_PACKAGE (input 'package') is empty, expected the package's directory."
    checkpoint="$(trimmed "${MOH_CHECKPOINT:-}")"
    if [[ -n "$checkpoint" ]]; then
        export_package
    fi
    verify_package
    if bench_is_asked_for; then
        bench_package
    fi
    is_finished=yes
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

remove_earlier_reports() {
    if ! { mkdir -p -- "$reports" && rm -f -- "$reports"/{verify,bench}.{json,md,html,junit.xml} &&
        [[ -w "$reports" && -x "$reports" ]]; }; then
        printf 'error: %s\n' "MOH_REPORTS (input 'reports') is $reports, which is no directory that can be written." >&2
        exit 5
    fi
}

require_python() {
    command -v -- "$python" >/dev/null || fail "MOH_PYTHON is $python, which is no program."
    "$python" -c "$has_moh_deploy" || fail "MOH_PYTHON is $python, a Python that has no moh-deploy."
}

export_package() {
    command=("$python" -m moh_deploy export "--output=$package")
    add_option --config "${MOH_CONFIG:-}"
    add_arguments "${MOH_EXPORT_ARGS:-}"
    run_command "${command[@]}" -- "$checkpoint" >&2
}

verify_package() {
    command=("$python" -m moh_deploy verify --json)
    command+=("--junit=$reports/verify.junit.xml" "--markdown=$reports/verify.md")
    command+=("--html=$reports/verify.html")
    add_option --inputs "${MOH_INPUTS:-}"
    add_option --labels "${MOH_LABELS:-}"
    add_option --against "${MOH_AGAINST:-}"
    add_option --policy "${MOH_POLICY:-}"
    add_option --baseline-file "${MOH_BASELINE_FILE:-}"
    add_arguments "${MOH_VERIFY_ARGS:-}"
    verify_verdict=error
    run_command "${command[@]}" -- "$package" >"$reports/verify.json" || judge verify $?
    "$python" "$here/check_junit.py" "$reports/verify.junit.xml" || judge verify $?
    verify_verdict=passed
}

bench_is_asked_for() {
    [[ -n "${MOH_BASELINES:-}${MOH_GATES:-}${MOH_BENCH_ARGS:-}" ]]
}

bench_package() {
    command=("$python" -m moh_deploy bench --json)
    command+=("--junit=$reports/bench.junit.xml" "--markdown=$reports/bench.md")
    command+=("--html=$reports/bench.html")
    add_option --baseline "${MOH_BASELINES:-}"
    add_option --gate "${MOH_GATES:-}"
    if [[ "${MOH_BASELINES:-}" =~ (^|[[:space:]])(eager|plain-onnx)($|[[:space:]]) ]]; then
        add_option --checkpoint "$checkpoint"
        add_option --config "${MOH_CONFIG:-}"
    fi
    add_option --baseline-file "${MOH_BASELINE_FILE:-}"
    add_arguments "${MOH_BENCH_ARGS:-}"
    bench_verdict=error
    run_command "${command[@]}" -- "$package" >"$reports/bench.json" || judge bench $?
    if ! bench_verdict="$("$python" -c "$passed_or_measured" "$reports/bench.json" 2>/dev/null)"; then
        bench_verdict=error
        fail "$reports/bench.json holds no answer, though bench ended with 0."
    fi
}

# judge verify|bench STATUS: keep what the exit code says, and end with it. A Python that cannot even load
# moh-deploy ends with 1, too, and so does a report that cannot be written: without an answer that is no 1.
judge() {
    if [[ $2 -eq 1 ]]; then
        [[ -s "$reports/$1.json" ]] || fail "$1 ended with 1, and $reports/$1.json holds no answer."
        printf -v "$1_verdict" failed
    fi
    exit "$2"
}

# add_option NAME LINES: one NAME=LINE for each line.
add_option() {
    local line
    while IFS= read -r line; do
        line="$(trimmed "$line")"
        if [[ -n "$line" ]]; then command+=("$1=$line"); fi
    done <<<"$2"
}

# add_arguments LINES: each line is an argument, as it is.
add_arguments() {
    local line
    while IFS= read -r line; do
        line="$(trimmed "$line")"
        if [[ -n "$line" ]]; then command+=("$line"); fi
    done <<<"$1"
}

trimmed() {
    local text="$1"
    text="${text#"${text%%[![:space:]]*}"}"
    printf '%s' "${text%"${text##*[![:space:]]}"}"
}

# run_command COMMAND...: what it says on stderr is for people. GitHub reads commands from the log, and a name
# in a model must not be one.
run_command() {
    local token="" status=0
    if [[ -n "${GITHUB_ACTIONS:-}" ]]; then
        token="$("$python" -c 'import secrets; print(secrets.token_hex(16))')"
        printf '::stop-commands::%s\n' "$token" >&2
    fi
    # Bash hears no signal while it waits for a command in the foreground.
    "$@" &
    child=$!
    wait "$child" || status=$?
    child=""
    if [[ -n "$token" ]]; then printf '\n::%s::\n' "$token" >&2; fi
    return "$status"
}

# stop STATUS: end the command, which removes what it has begun, and then this script.
stop() {
    trap '' INT TERM HUP
    if [[ -n "$child" ]]; then
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" || true
    fi
    exit "$1"
}

# Whatever the answer is: reports where CIs look for them.
finish() {
    local status=$? verdict=error
    if [[ "$status" -eq 0 && "$is_finished" == yes ]]; then
        verdict=passed
    elif [[ "$verify_verdict" == failed || "$bench_verdict" == failed ]]; then
        verdict=failed
    fi
    if [[ -n "${GITHUB_STEP_SUMMARY:-}" ]]; then
        summary "$verdict" "$status" >>"$GITHUB_STEP_SUMMARY"
    else
        summary "$verdict" "$status"
    fi
    if [[ -n "${GITHUB_OUTPUT:-}" ]]; then
        outputs "$verdict" >>"$GITHUB_OUTPUT"
    fi
    if [[ -n "${GITHUB_ACTIONS:-}" && "$verdict" != passed ]]; then
        printf '::error title=moh-deploy::%s. The summary of the job says why.\n' "$(in_short "$status")"
    fi
}

in_short() {
    printf 'verify: %s, bench: %s; exit code %s' "$verify_verdict" "$bench_verdict" "$1"
}

summary() {
    local report
    printf '### moh-deploy: %s\n\n' "$1"
    printf '%s\n\n' "$(in_short "$2")"
    for report in verify bench; do
        if [[ -s "$reports/$report.md" ]]; then
            cat -- "$reports/$report.md"
            printf '\n'
        fi
    done
}

outputs() {
    local file
    printf 'verdict=%s\n' "$1"
    printf 'verify=%s\n' "$verify_verdict"
    printf 'bench=%s\n' "$bench_verdict"
    printf 'reports=%s\n' "$reports"
    for file in {verify,bench}.{json,md,html,junit.xml}; do
        if [[ -s "$reports/$file" ]]; then
            printf '%s=%s\n' "${file//./-}" "$reports/$file"
        fi
    done
}

main
