# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Completion for bash and zsh: made of the parsers, so that it offers all that they take and nothing else.

The scripts ask nobody: projects are the folders of ``~/workspace``, images those that the server offered when
they were written. A TAB that started Python or asked the broker would be felt.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping, Sequence

from .interface import Argument, Interface, Option, programs
from .policy import Policy

#: Where bash-completion (its README) and zsh (zshcompsys(1)) look for what an administrator installs.
BASH_DIRECTORY = "/usr/local/share/bash-completion/completions"
ZSH_DIRECTORY = "/usr/local/share/zsh/site-functions"
#: What can be offered for an argument of that name; for others it is nothing.
_PROJECTS, _IMAGES, _FILES, _FOLDERS, _KEPT = "projects", "images", "files", "folders", "kept"
_OFFERED = {
    "NAME": _PROJECTS,
    "IMAGE": _IMAGES,
    "PATH": _FILES,
    "FILE": _FILES,
    "FOLDER": _FOLDERS,
    "KEPT": _KEPT,
}

_BASH = r"""# Completion of bash for 'PROGRAM'.
MARK
_lab_server_FUNCTION() {
    local line=${COMP_LINE:0:COMP_POINT}  # counted in characters, what follows in bytes
    local LC_ALL=C IFS=$' \t\n' cur=${line##*[[:space:]]} word
    local before='' verb='' kind='' options='' number=0 skip='' many=''
    local -a words=() kinds=() found=()
    local -A values=()
    read -r -a words <<<"${line%"$cur"}"
    local at=FIRST
    [[ at -eq 1 ]] || verb=${words[1]-}
NESTED
    case $verb in
CASES
    esac
    for word in "${words[@]:at}"; do
        if [[ $skip ]]; then
            skip=''
        elif [[ $before != -- && $word == -* ]]; then
            before=$word
            [[ ! ${values[$word]-} ]] || skip=1
            [[ $word != -- ]] || options=''
        else
            number=$((number + 1))
        fi
    done
    if [[ $skip ]]; then
        kind=${values[$before]}
    elif [[ $before != -- && $cur == --*=* ]]; then
        word=${cur%%=*}
        kind=${values[$word]-}
        cur=${cur#*=}
    elif [[ $options && $cur == -* ]]; then
        kind="=$options"
    elif ((number < ${#kinds[@]})); then
        kind=${kinds[number]}
    elif [[ $many ]]; then
        kind=${kinds[-1]}
    fi
    case $kind in
        =*) for word in ${kind#=}; do [[ $word != "$cur"* ]] || found+=("$word"); done ;;
        images) for word in IMAGES; do [[ $word != "$cur"* ]] || found+=("$word"); done ;;
        projects)
            # Not by 'compgen -W', which would expand what it finds: a folder may have any name.
            for word in "${HOME-}/workspace/$cur"*/; do
                word=${word%/} word=${word##*/}
                [[ $word == *[!a-z0-9-]* || $word == -* ]] || found+=("$word")
            done
            ;;
        kept)
            # What keeping.py calls its archives, and what it puts into the trash; none that cannot go back.
            for word in "${HOME-}/workspace/.archive/"*.tar.gz "${HOME-}/workspace/.trash/"*/; do
                word=${word%/} word=${word##*/}
                [[ $word =~ ^([a-z0-9][a-z0-9-]*)-[0-9]{8}-[0-9]{6}(\.tar\.gz)?$ ]] || continue
                [[ ! -e ${HOME-}/workspace/${BASH_REMATCH[1]} ]] || continue
                for word in "${BASH_REMATCH[1]}" "$word"; do
                    [[ $word != "$cur"* || " ${found[*]-} " == *" $word "* ]] || found+=("$word")
                done
            done
            ;;
        files) compopt -o default 2>/dev/null ;;
        folders) compopt -o dirnames 2>/dev/null ;;
    esac
    # Of a word with ':' readline replaces what is behind the last one only.
    [[ $cur != *:* || ${COMP_WORDBREAKS-:} != *:* ]] || found=("${found[@]#"${cur%"${cur##*:}"}"}")
    COMPREPLY=("${found[@]}")
}
complete -F _lab_server_FUNCTION PROGRAM
"""

_ZSH = r"""#compdef PROGRAMS
MARK
_lab_server_projects() {
    local -a found
    local expl
    found=(${HOME}/workspace/*(N/:t))
    found=(${(M)found:#[a-z0-9]*})
    found=(${found:#*[^a-z0-9-]*})
    _wanted projects expl project compadd -a found
}
_lab_server_kept() {
    local -aU found
    local expl one project
    for one in ${HOME}/workspace/.archive/*.tar.gz(N:t) ${HOME}/workspace/.trash/*(N/:t); do
        [[ $one =~ '^[a-z0-9][a-z0-9-]*-[0-9]{8}-[0-9]{6}([.]tar[.]gz)?$' ]] || continue
        project=${${one%.tar.gz}%-*-*}
        [[ -e ${HOME}/workspace/$project ]] || found+=($project $one)
    done
    _wanted kept expl 'kept project' compadd -a found
}
_lab_server_images() {
    local -a found
    local expl
    found=(IMAGES)
    _wanted images expl 'base image' compadd -a found
}
FUNCTIONS
_lab_server() {
    _lab_server_${service//-/_}
}
_lab_server "$@"
"""


def files(policy: Policy, mark: str) -> dict[str, str]:
    """Return the text of each file by its path; ``mark`` is the comment that says whose it is."""
    images = [base.name for base in policy.base_images]
    found = {}
    for program in programs():
        found[posixpath.join(BASH_DIRECTORY, program.page)] = bash(program, images, mark)
    found[posixpath.join(ZSH_DIRECTORY, "_lab-server")] = zsh(programs(), images, mark)
    return found


def _filled(text: str, parts: Mapping[str, str]) -> str:
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


def _kind(value: str, choices: Sequence[str]) -> str:
    return "=" + " ".join(choices) if choices else _OFFERED.get(value, "nothing")


# ---- bash ------------------------------------------------------------------------------------------------


def bash(program: Interface, images: Sequence[str], mark: str) -> str:
    """Return the script of one program for bash 4 and later."""
    cases, nested = [], []
    for command in program.commands:
        verb = command.words[-1]
        if command.commands:
            nested.append(verb)
            cases += [_bash_case(f"{verb} {one.words[-1]}", one) for one in command.commands]
            cases.append(_bash_verbs(verb, 2, command))
        else:
            cases.append(_bash_case(verb, command))
    if program.commands:
        cases.append(_bash_verbs("", 1, program))
    else:
        cases.append(_bash_case("", program))
    return _filled(
        _BASH,
        {
            "PROGRAM": program.page,
            "FUNCTION": program.page.replace("-", "_"),
            "MARK": mark,
            "CASES": "\n".join(cases),
            "NESTED": "\n".join(
                f'    [[ $verb != {verb} || ! ${{words[2]-}} ]] || at=3 verb="{verb} ${{words[2]}}"'
                for verb in nested
            ),
            "FIRST": "2" if program.commands else "1",
            "IMAGES": " ".join(shlex.quote(image) for image in images) or "''",
        },
    )


def _bash_verbs(verb: str, at: int, group: Interface) -> str:
    """Return the case of a group without its command; behind one that there is not, nothing is offered."""
    verbs = shlex.quote("=" + " ".join(command.words[-1] for command in group.commands))
    return f"        {shlex.quote(verb)}) at={at} options={_of_options(group)} kinds=({verbs}) ;;"


def _of_options(one: Interface) -> str:
    return shlex.quote(" ".join(spelling for option in one.options for spelling in option.spellings))


def _bash_case(verb: str, one: Interface) -> str:
    values = " ".join(
        f"[{spelling}]={shlex.quote(_kind(option.value, option.choices))}"
        for option in one.options
        if option.value
        for spelling in option.spellings
    )
    kinds = " ".join(shlex.quote(_kind(argument.name, ())) for argument in one.arguments)
    many = "1" if one.arguments and one.arguments[-1].most == 0 else "''"
    return (
        f"        {shlex.quote(verb)})\n            options={_of_options(one)} values=({values})\n"
        f"            kinds=({kinds}) many={many}\n            ;;"
    )


# ---- zsh -------------------------------------------------------------------------------------------------


def zsh(all_programs: Sequence[Interface], images: Sequence[str], mark: str) -> str:
    """Return the script of all programs for zsh."""
    functions = [_zsh_group(one) if one.commands else _zsh_command(one) for one in all_programs]
    return _filled(
        _ZSH,
        {
            "PROGRAMS": " ".join(program.page for program in all_programs),
            "MARK": mark,
            "IMAGES": " ".join(shlex.quote(image) for image in images),
            "FUNCTIONS": "\n".join(functions),
        },
    )


def _zsh_command(program: Interface) -> str:
    specs = [_zsh_option(option) for option in program.options]
    specs += [_zsh_argument(number, one) for number, one in enumerate(program.arguments, 1)]
    return (
        f"_lab_server_{program.page.replace('-', '_')}() {{\n    _arguments -s : \\\n        "
        + " \\\n        ".join(shlex.quote(spec) for spec in specs)
        + "\n}"
    )


def _zsh_group(program: Interface) -> str:
    verbs = "\n".join(
        "        " + shlex.quote(f"{command.words[-1]}:{command.summary}") for command in program.commands
    )
    cases = "|".join(command.words[-1] for command in program.commands)
    function = f"_lab_server_{program.page.replace('-', '_')}"
    return f"""{function}() {{
    local curcontext=$curcontext state line
    local -a verbs
    verbs=(
{verbs}
    )
    _arguments -C '(- *)'{{-h,--help}}'[show this help]' '1: :->verb' '*:: :->rest'
    case $state in
        verb) _describe -t commands command verbs ;;
        rest) case $words[1] in {cases}) {function}_${{words[1]//-/_}} ;; esac ;;
    esac
}}"""


def _zsh_escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "[]:\\" else c for c in text)


def _zsh_action(kind: str) -> str:
    if kind.startswith("="):
        return f"({kind[1:]})"
    return {
        _PROJECTS: "_lab_server_projects",
        _IMAGES: "_lab_server_images",
        _KEPT: "_lab_server_kept",
        _FILES: "_files",
        _FOLDERS: "_files -/",
    }.get(kind, "()")


def _zsh_option(option: Option) -> str:
    spelling = option.spellings[-1]
    said = f"[{_zsh_escaped(option.help)}]"
    if not option.value:
        return f"(- *){spelling}{said}" if spelling == "--help" else spelling + said
    return f"{spelling}={said}:{option.value}:{_zsh_action(_kind(option.value, option.choices))}"


def _zsh_argument(number: int, argument: Argument) -> str:
    which = "*" if argument.most == 0 else str(number)
    optional = ":" if argument.least == 0 and argument.most == 1 else ""
    return f"{which}:{optional}{argument.name}:{_zsh_action(_kind(argument.name, ()))}"
