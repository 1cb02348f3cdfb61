# Prints the third-party notices. Each input line has a heading and the path of one of its licence files, with a tab between
# them. Headings with the same text, apart from white space, share one copy of it.

BEGIN { FS = "\t" }

{
  text = key = ""
  while ((getline line < $2) > 0) {
    sub(/\r$/, "", line)
    text = text line "\n"
    key = key " " line
  }
  close($2)
  gsub(/[ \t\n]+/, " ", key)
  if (!(key in texts)) {
    texts[key] = text
    order[++count] = key
  }
  if (!seen[key, $1]++) headings[key] = headings[key] $1 "\n"
}

END {
  for (i = 1; i <= count; i++) {
    printf "%s\n%s\n%s", rule("="), headings[order[i]], rule("-") "\n"
    printf "%s\n", texts[order[i]]
  }
}

function rule(sign,   out) {
  out = sprintf("%100s", "")
  gsub(/ /, sign, out)
  return out
}
