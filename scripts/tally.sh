# Read by the scripts that check things: one line for each check, and their number at the end.
# shellcheck shell=sh

passed=0
failed=0

# try LABEL COMMAND...: silent when the command succeeds; its output when it fails.
try() {
  label=$1
  shift
  if output=$("$@" 2>&1); then
    passed=$((passed + 1))
    echo "ok    $label"
  else
    failed=$((failed + 1))
    printf 'FAIL  %s\n%s\n' "$label" "$output"
  fi
}

# The closing line; the exit status says whether all was well.
tally() {
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}
