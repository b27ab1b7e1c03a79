# shellcheck shell=bash
# To be sourced, at the top of the repository: a container engine, Compose, and the images that everything is built from.

# Debian's client can use BuildKit by itself; a newer one needs its plugin, and may stand first in PATH without it.
# Asked again once Debian's has been installed.
choose_client() {
  if [[ -x /usr/bin/docker ]] && ! docker buildx version >/dev/null 2>&1; then
    PATH=/usr/bin:$PATH
    hash -r
  fi
}
choose_client
export PATH=$PATH:/usr/sbin DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1

as_root=()
((EUID == 0)) || as_root=(sudo -n)

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# Installs what is missing, as far as that is possible.  need COMMAND PACKAGE...
need() {
  command -v "$1" >/dev/null && return
  if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    echo "${0##*/}: installing ${*:2}"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${@:2}" >/dev/null
  fi
  command -v "$1" >/dev/null || fail "needs $1; please install it (Debian, Ubuntu: apt-get install ${*:2})"
}

# Docker Compose v2, or 1.29.
compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# Installs and starts the engine where there is none. $engine is the process that was started, if one was.
engine=
start_engine() {
  need docker docker.io iptables
  docker compose version >/dev/null 2>&1 || need docker-compose docker-compose
  docker info >/dev/null 2>&1 && return
  ((EUID == 0)) || fail "no container engine answers; please start Docker"
  need dockerd docker.io iptables
  choose_client
  setsid dockerd >"$1" 2>&1 </dev/null &
  engine=$!
  local patience
  for ((patience = 0; patience < 60; patience++)); do
    docker info >/dev/null 2>&1 && return
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.5
  done
  tail -n 20 "$1" >&2
  fail "the container engine does not come up"
}

stop_engine() {
  [[ -z $engine ]] || kill "$engine"
}

# What deploy/Dockerfile and docker-compose.yml start from. Grafana and Jaeger have no stand-ins, and are not tried.
base_images() {
  sed -nE 's/^FROM ([^ ]*:[^ ]*).*/\1/p' deploy/Dockerfile | sort -u
  sed -nE 's,^ +image: ((redis|haproxy|prom/[a-z]+):.*),\1,p' docker-compose.yml
}

# Those that the engine does not have.
missing_images() {
  local image
  for image in $(base_images); do
    docker image inspect "$image" >/dev/null 2>&1 || echo "$image"
  done
}

# Pulls them. Where no registry can be reached, a program may provide them: $ANTIPHON_LOCAL_IMAGES; what is missing then
# is made of Debian's packages.
provide_images() {
  local image missing
  for image in $(missing_images); do
    docker pull --quiet "$image" 2>/dev/null || true
  done
  mapfile -t missing < <(missing_images)
  ((${#missing[@]})) || return 0
  echo "${0##*/}: cannot be pulled: ${missing[*]}"
  [[ -z ${ANTIPHON_LOCAL_IMAGES:-} ]] || "$ANTIPHON_LOCAL_IMAGES"
  mapfile -t missing < <(missing_images)
  ((!${#missing[@]})) || deploy/test/stand-ins "${missing[@]}"
}
