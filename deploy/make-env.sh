#!/bin/sh
# Writes deploy/.env from deploy/env.example with fresh secrets, readable by you alone. Leaves one that is there as it is.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "deploy/.env is there already; nothing changed"
  exit 0
fi
secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
draft=.env.$$
trap 'rm -f "$draft"' EXIT
while IFS= read -r line; do
  case "$line" in
    HEPH_*=|GRAFANA_*=) printf '%s%s\n' "$line" "$(secret)" ;;
    *) printf '%s\n' "$line" ;;
  esac
done < env.example > "$draft"
mv "$draft" .env
echo "wrote deploy/.env; put your provider's key into OPENAI_API_KEY"
