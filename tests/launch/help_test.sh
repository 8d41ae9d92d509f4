#!/usr/bin/env bash
# The program's texts about itself, and docs/configuration.md.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

succeed 1 --version
check 'the version with the commit' grep -Eq '^fulmen [0-9]+\.[0-9]+\.[0-9]+ \(commit [0-9a-z]+\)$' out
succeed 1 --help
commands=$(sed -n 's/^  \([a-z]\{1,\}\) .*/\1/p' out)
for command in prepare train eval gradients generate import export inspect doctor; do
  check "help lists $command" grep -qw "$command" <<<"$commands"
done
for command in $commands; do
  succeed 1 "$command" --help
  check "$command --help shows its usage" grep -q "^usage: fulmen $command" out
  check "$command --help shows an example" grep -A 1 '^example:' out
  check "$command's example is a command" grep -q "^  .*fulmen $command" <(grep -A 1 '^example:' out)
  check "$command --help warns of nothing" test ! -s err
done
expect_code 2 1
check 'without a command the help is shown' grep -q '^usage:' out

succeed 1 doctor
check 'the cores' grep -Eq '^host_cores +[0-9]+' out
succeed 1 doctor --json
check 'one line' test "$(wc -l <out)" = 1
check 'one rank' test "$(json out ranks)" = 1
succeed 4 doctor --json
check 'four ranks answer once' test "$(json out ranks)" = 4

succeed 1 doctor --configuration
check 'docs/configuration.md is what the schema says; write it with: fulmen doctor --configuration >docs/configuration.md' \
  diff out "$SOURCE/docs/configuration.md"

finish
