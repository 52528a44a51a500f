#!/bin/bash
# Programs of every day on a mounted pool, inside a guest: programs.sh PAGESTONE POOL
set -eu
program=$1 pool=$2 mount=/tmp/mount
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
mkdir -p $mount
trap 'cd /; umount -l $mount 2>/dev/null || true' EXIT

mounted() {
    "$program" mount "$pool" $mount &
    server=$!
    for _ in $(seq 600); do
        mountpoint -q $mount && return
        kill -0 $server || exit 1
        sleep 0.1
    done
    echo "the mount does not come about" && exit 1
}

unmounted() {
    cd / && umount $mount && wait $server
    "$program" check "$pool" >/dev/null
}

mounted
cd $mount
git init -q -b main repository && cd repository
for n in 1 2 3; do
    mkdir -p d$n && head -c 30000 /dev/urandom >d$n/bytes && seq $((n * 1000)) >numbers
    git add . && git commit -qm "commit $n"
done
git gc -q
cd ..
tar -C /usr/share -cf perl.tar perl5 && mkdir unpacked && tar -C unpacked -xf perl.tar
# WAL shares a mapping; of files that bypass its page cache a kernel has those from 6.6 on.
journal=wal
test "$(printf '%s\n' 6.6 "$(uname -r)" | sort -V | head -1)" = 6.6 || journal=delete
sqlite3 base.db "pragma synchronous=full; pragma journal_mode=$journal; create table t(id integer primary key, v text);" >/dev/null
(echo "begin;" && seq 2000 | sed "s/.*/insert into t values(&, 'row &');/" && echo "commit;") | sqlite3 base.db
unmounted

mounted
cd $mount
git -C repository fsck --full --strict 2>/dev/null && test -z "$(git -C repository status --porcelain)"
diff -r /usr/share/perl5 unpacked/perl5
test "$(sqlite3 base.db 'pragma integrity_check; select count(*) from t;' | tr '\n' ' ')" = "ok 2000 "
unmounted
echo "git, tar, sqlite3 ($journal)"
