# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program ``workspace`` of containers: tells by ``workspace where PATH`` what is kept and what is lost.

It is for the POSIX shell that every image has, as many have no Python; besides the shell's own it uses
``readlink``, or else ``ls``, and those for links only. It judges by what is mounted in the container where it
runs. Its sentences are those of ``where``, put in here.
"""

from __future__ import annotations

import shlex

from . import WORKSPACE, mounts, where

_KINDS = (
    *("workspace", "kept_home", "kept_folder", "home", "group", "shared", "layer", "volume", "server"),
    *("container_memory", "kernel", "loop"),
)

_PROGRAM = r"""#!/bin/sh
# The part of the server's command 'workspace' that is for the inside of containers.
# Bytes, not characters: names are bytes.
LC_ALL=C
unset IFS
newline='
'

usage() {
    printf '%s\n' 'usage: workspace where [--json] [PATH ...]' '' \
        'Say of each path (default: this folder) whether it is kept or lost, and why.' \
        'A link is followed: the verdict is that of the place where it leads.' '' \
        'example:' '  workspace where ~/notes.txt @ROOT@' '' 'exit codes:' \
        '  0  every path was judged' '  1  it failed; the message says why' \
        '  2  the command line is wrong' '  4  every path was judged, and at least one is not there' '' \
        'The other commands are on the server, outside of the container.'
}

fail() {
    printf 'workspace: %s\n' "$1" >&2
    exit "$2"
}

# Sets quoted to $1 with its control characters escaped, for people, or with $2 = json within a JSON text.
quote() {
    quoted='' left=$1
    while [ -n "$left" ]; do
        tail=${left#?}
        byte=${left%"$tail"} left=$tail
        case $2$byte in
            json\" | json\\) byte=\\$byte ;;
            json[[:cntrl:]]) byte=$(printf '\\u%04x' "'$byte") ;;
            "$newline") byte='\n' ;;
            "$tab") byte='\t' ;;
            "$return") byte='\r' ;;
            [[:cntrl:]]) byte=$(printf '\\x%02x' "'$byte") ;;
            "$c1")
                # U+0080 to U+009F, which a terminal may obey.
                tail=${left#?}
                code=$(printf %d "'${left%"$tail"}")
                [ "$code" -ge 0 ] || code=$((code + 256))
                if [ "$code" -ge 128 ] && [ "$code" -lt 160 ]; then
                    byte=$(printf '\\x%02x' "$code") left=$tail
                fi
                ;;
        esac
        quoted=$quoted$byte
    done
}
tab=$(printf '\t') return=$(printf '\r') c1=$(printf '\302')

# Sets target to where the link $1 leads; the x keeps a line break at the end of it.
follow() {
    if command -v readlink >/dev/null 2>&1; then
        target=$(readlink -n "$1" 2>/dev/null; printf x)
    elif command -v ls >/dev/null 2>&1; then
        target=$(ls -ld "$1" 2>/dev/null; printf x)
        target=${target#*"$1 -> "} target=${target%"${newline}x"}x
    else
        fail 'This image has neither readlink nor ls, with which to follow a link.' 1
    fi
    target=${target%x}
}

# Sets real, exists, led, loop and blocked for the absolute path $1, as path_resolution(7) has it.
resolve() {
    rest=$1 real='' exists=true led='' loop='' blocked='' links=0
    while [ -n "$rest" ]; do
        part=${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) rest='' ;; esac
        case $part in
            '' | .) continue ;;
            ..) real=${real%/*}; continue ;;
        esac
        # Of this shell, not of readlink.
        case $real/$part in
            /proc/self) part=$$ ;;
            /proc/thread-self) part=$$/task/$$ ;;
        esac
        here=${real:-/} real=$real/$part
        [ "$exists" = true ] || continue
        if [ -L "$real" ]; then
            links=$((links + 1))
            if [ "$links" -gt @LINKS@ ]; then
                exists=false loop=1
                return
            fi
            case $real in
                /home/.workspaces/*/* | /home/*/*/*) led=1 ;;
                /home/*/workspace | /home/.workspaces/*) ;;
                *) led=1 ;;
            esac
            follow "$real"
            if [ -z "$target" ]; then
                exists=false blocked=$real
                continue
            fi
            rest=$target/$rest
            case $target in /*) real='' ;; *) real=${here%/} ;; esac
        elif ! [ -e "$real" ]; then
            exists=false
            if [ -d "$here" ] && ! [ -x "$here" ]; then blocked=$here; fi
        fi
    done
    real=${real:-/}
}

# Sets point, root, access and kind to the mount that holds $1; proc(5): /proc/self/mountinfo.
holding() {
    point=''
    while read -r _id _parent _device from to options more; do
        # Some characters are written as a backslash and three octal digits.
        plain=''
        while :; do
            case $to in *\\*) ;; *) break ;; esac
            tail=${to#*\\}
            digits=${tail%"${tail#???}"}
            plain=$plain${to%%\\*}$(printf "\\${digits}x")
            plain=${plain%x} to=${tail#???}
        done
        plain=$plain$to
        stem=${plain%/}  # apart: bash 5.2 does not match an expansion in a pattern that comes to nothing
        case $1/ in "$stem"/*) ;; *) continue ;; esac
        if [ "${#plain}" -ge "${#point}" ]; then
            point=$plain root=$from access=$options kind=${more#*- }
        fi
    done <"$mountinfo"
    kind=${kind%% *}
}
mountinfo=@MOUNTINFO@

# Sets verdict and why for what resolve and holding found; where.kind_inside is the same in Python.
judge() {
    file=1 writable=1
    if [ -d "$point" ]; then file=''; fi
    case ,$access, in *,ro,*) writable='' ;; esac
    if [ -n "$loop" ]; then @loop@
    else
        case $kind in
            @KERNEL@) @kernel@ ;;
            @MEMORY@) @container_memory@ ;;
            *)
                case $file$point:$root in
                    /:*) @layer@ ;;
                    1*) if [ -n "$writable" ]; then @layer@; else @server@; fi ;;
                    @ROOT@:*) @workspace@ ;;
                    *:*/volumes/*/_data) @volume@ ;;
                    *)
                        case ${writable:-0}$point:$root in
                            0*) @shared@ ;;
                            1/home/*/*:*) @group@ ;;
                            1/home/*:*/.homes/*) @kept_home@ ;;
                            1/home/*:*) @home@ ;;
                            1*:*/.homes/*) @kept_folder@ ;;
                            *) @group@ ;;
                        esac
                        ;;
                esac
                ;;
        esac
    fi
}

# Says what was found of the path $1.
say() {
    quote "$1" "$json"
    shown=$quoted
    set -- "$why"
    if [ -n "$led" ] && [ -z "$loop" ]; then set -- "$@" @LEADS@"$real"; fi
    if [ -n "$blocked" ]; then
        set -- "$@" @BLOCKED@"$blocked"
    elif [ "$exists" = false ] && [ -z "$loop" ]; then
        set -- "$@" @MISSING@
    fi
    if [ -z "$json" ]; then
        printf '%-9s%s\n' "$verdict" "$shown"
        for line; do
            quote "$line" ''
            printf '         %s\n' "$quoted"
        done
        return
    fi
    lines=''
    for line; do
        quote "$line" json
        lines="$lines, \"$quoted\""
    done
    quote "$real" json
    printf '%s{"exists": %s, "path": "%s", "real": "%s", "verdict": "%s", "why": [%s]}' \
        "$comma" "$exists" "$shown" "$quoted" "$verdict" "${lines#, }"
    comma=', '
}

case ${1-} in
    where) shift ;;
    --help | -h) usage; exit 0 ;;
    '') usage >&2; exit 2 ;;
    *) fail "Inside of a container there is only 'workspace where'. See 'workspace --help'." 2 ;;
esac
json='' comma='' code=0 options=o
for word; do
    shift
    case $options:$word in
        o:--) options='' ;;
        o:--json) json=json ;;
        o:--help | o:-h) usage; exit 0 ;;
        o:-?*) fail "It has no such option. See 'workspace --help'." 2 ;;
        o: | :) fail 'An empty path names nothing. Name a file or a folder, or nothing for this folder.' 2 ;;
        *) set -- "$@" "$word" ;;
    esac
done
[ $# -gt 0 ] || set -- .
here=$(pwd -P 2>/dev/null && printf x) || fail 'The folder where you are is gone.' 1
folder=${here%"${newline}x"}
if ! [ -r "$mountinfo" ]; then fail "$mountinfo cannot be read." 1; fi
[ -z "$json" ] || printf '{"paths": ['
for path; do
    case $path in /*) resolve "$path" ;; *) resolve "$folder/$path" ;; esac
    holding "$real"
    judge
    say "$path"
    [ "$exists" = true ] || code=4
done
[ -z "$json" ] || printf ']}\n'
exit $code
"""


def program() -> str:
    """Return the text of the program."""
    text = _PROGRAM
    for kind in _KINDS:
        verdict, sentence = where.KINDS[kind]
        text = text.replace(f"@{kind}@", f"verdict={verdict} why={shlex.quote(sentence)}")
    words = {
        "LEADS": shlex.quote(where.LEADS),
        "BLOCKED": shlex.quote(where.BLOCKED),
        "MISSING": shlex.quote(where.MISSING),
        "KERNEL": " | ".join(where.KERNEL_TYPES),
        "MEMORY": " | ".join(where.MEMORY_TYPES),
        "LINKS": str(where.LINKS),
        "ROOT": WORKSPACE,
        "MOUNTINFO": mounts.MOUNTINFO,
    }
    for name, word in words.items():
        text = text.replace(f"@{name}@", word)
    return text
