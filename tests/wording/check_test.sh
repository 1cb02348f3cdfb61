#!/usr/bin/env bash
# Tests check.py in a project of its own, with short lists.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
lists=$folder/tests/wording
failed=0

mkdir -p "$lists"
cp "$here/check.py" "$lists/"
git -C "$folder" init --quiet
printf '%s\n' '*' '!skipped/*' '!tests/*' >"$lists/paths.txt"
printf '%s\n' '# a comment' 'told | report' 'put(s)? (\w+ ){0,2}aside | suspend' >"$lists/words.txt"
: >"$lists/exceptions.txt"
: >"$lists/long_sentences.txt"

# Creates a file for the next `verify`, and notes the findings that it must have. {} in EXPECTED is the name of the file.
count=0 expected=()
check() { # FILE TEXT [EXPECTED...]
  local file
  count=$((count + 1))
  file=$(dirname "$1")/$(printf %02d "$count")-$(basename "$1")
  file=${file#./}
  mkdir -p "$(dirname "$folder/$file")"
  printf '%s\n' "$2" >"$folder/$file"
  (($# == 2)) || expected+=("${@:3}")
  expected=("${expected[@]//\{\}/$file}")
}

# Checks all files at once. Each finding must begin with its EXPECTED.
verify() { # [EXPECTED...]
  local found i
  expected+=("$@")
  mapfile -t found < <(python3 "$lists/check.py" 2>&1 || true)
  for i in $(seq 0 $((${#expected[@]} > ${#found[@]} ? ${#expected[@]} - 1 : ${#found[@]} - 1))); do
    [[ ${expected[i]:-} && ${found[i]:-} == "${expected[i]}"* ]] ||
      fail "expected \"${expected[i]:-no finding}\", got \"${found[i]:-no finding}\""
  done
  find "$folder" -type f ! -path "$lists/*" ! -path "$folder/.git/*" -delete
  expected=()
}

fail() { echo "check_test.sh: $*" >&2; failed=1; }

words() { # NUMBER: a sentence with NUMBER words
  printf 'Word%.0s' 1
  printf ' word%.0s' $(seq 2 "$1")
  echo .
}

check a.sh 'echo fine'
check a.sh $'echo fine\n# It was told.' '{}:2: "told": report'
check a.sh 'echo "retold, toldo"'
check a.yaml 'key: Told, and told' '{}:1: "Told"' '{}:1: "told"'
check a.sh '# It puts the run aside.' '{}:1: "puts the run aside"'
check a.sh $'# It puts\n# aside the run.' '{}:1: "puts aside"'
check skipped/a.sh '# told'

# In programs, comments and strings count.
check a.rs 'let told = "fine";'
check a.rs '// told' '{}:1: "told"'
check a.rs 'let a = "told"; /* told */' '{}:1: "told"' '{}:1: "told"'
check a.rs $'let told = \'"\'; // it is\n/// told' '{}:2: "told"'
check a.rs $'fn told<\'a>(told: &\'a str) -> char { \'\\\'\' } // fine'
check a.rs 'let told = r#"a "told" b"#;' '{}:1: "told"'
# shellcheck disable=SC2016
check a.js 'told(`told`)' '{}:1: "told"'
check a.css '.told { color: red } /* told */' '{}:1: "told"'

# In pages, the text and visible attributes count.
check a.html '{% if told %}<p class="told" title="fine">{{ told }}</p>{% endif %}'
check a.html '<p>told</p>' '{}:1: "told"'
check a.html $'<a\n title="told" href="/told">x</a>' '{}:2: "told"'

# Markdown has a limit for sentences.
check a.md "$(words 30) $(words 30)"
check a.md "$(words 31)" '{}:1: 31 words'
check a.md $'# Title\n\nFine.\n\n'"$(words 16 | tr -d .)"$'\n'"$(words 16)" '{}:5: 32 words'
check a.md $'```\n'"$(words 40)"$'\n```'
check a.md "| $(words 20) | $(words 20) |"
check a.md $'- '"$(words 20 | tr -d .)"$'\n- '"$(words 20 | tr -d .)"
check a.md 'See https://example.com/told and [this](https://example.com/told).'

verify

# Exceptions need a reason, and must be used.
echo '*-a.sh | told | the name of a variable' >"$lists/exceptions.txt"
check a.sh 'told=1'
check b.sh 'told=1' '{}:1: "told"'
verify
check b.sh 'told=1' '{}:1: "told"'
verify 'tests/wording/exceptions.txt: unused: "*-a.sh | told"'
echo '*-a.sh | told' >"$lists/exceptions.txt"
verify 'tests/wording/exceptions.txt:1: expected 3 columns'
: >"$lists/exceptions.txt"
echo '*-a.md | Word word word | a quotation' >"$lists/long_sentences.txt"
check a.md "$(words 31)"
verify

exit $failed
