/** What becomes of the image's program: who it is, what it sees, how it ends and how that is told. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { GuestClient, type GuestConfig } from '../../packages/daemon/src/guest/guest-client.ts'
import type { VmSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { configOf, type Guest, type GuestHouse, guestHouse } from './guest-story.ts'

const FAKE_INIT = `#!/bin/sh
echo "init is process $$ in $(cat /proc/self/cgroup)"
trap 'echo "init was told to power off"; kill -TERM -1; sleep 1; poweroff -f' RTMIN+4 38
while :; do sleep 0.1; done
`

const certificate = (text: string): string => `-----BEGIN CERTIFICATE-----\n${text}\n-----END CERTIFICATE-----`
const AUTHORITY = `${certificate('T3Vy')}\n`
// Without an end of its last line.
const BUNDLE = certificate('VGhlaXJz')

let house: GuestHouse
before(async () => {
  house = await guestHouse('qemu-microvm', {
    '/sbin/init': FAKE_INIT,
    '/bin/notprogram': 'these are only words\n',
    '/etc/secret': 'not to be run\n',
    '/etc/ssl/certs/ca-certificates.crt': BUNDLE,
  })
})
after(() => house[Symbol.asyncDispose]())

const exitOf = async (guest: Guest) => {
  const facts = await guest.ended()
  const exited = facts.find((fact) => fact.event === 'exited')
  return { started: facts.some((fact) => fact.event === 'started'), code: exited?.code, message: exited?.message }
}

test('the program is who the image says, where it says, and sees what a container sees', async () => {
  const script =
    'id; pwd; echo "$COLOUR $HOME $PATH"; echo to-stderr >&2; echo again > /dev/stdout; hostname; cat /proc/self/cgroup; exec sleep 1000'
  await using guest = await house.running({ argv: ['sh', '-c', script], user: 'alice', cwd: '/srv/data/deep' })
  const log = await guest.logged(/0::/)
  assert.match(log, /uid=1000\(alice\) gid=1000\(alice\) groups=(1000\(alice\),)?27\(wheel\)/)
  assert.match(log, /^\/srv\/data\/deep$/m)
  assert.match(log, /^blue \/home\/alice \/usr\/local\/sbin:/m)
  assert.match(log, /^to-stderr\nagain\nstory\n0::\/main$/m)
  const { stdout } = await guest.run(
    'cat /proc/mounts /etc/hosts /etc/resolv.conf /etc/machine-id; ip -4 addr show eth0; ip route; cat /sys/class/net/eth0/address',
    { user: '0' },
  )
  for (const mount of [
    '/proc proc',
    '/sys sysfs',
    '/dev devtmpfs',
    '/dev/pts devpts',
    '/dev/shm tmpfs',
    '/dev/mqueue mqueue',
    '/sys/fs/cgroup cgroup2',
    '/ overlay',
    '/lib/modules squashfs ro',
  ]) {
    assert.ok(stdout.includes(` ${mount}`), mount)
  }
  assert.match(stdout, /^10\.0\.2\.15\tstory$/m)
  assert.match(stdout, /^192\.0\.2\.9 db$/m)
  assert.match(stdout, /^nameserver 10\.0\.2\.3$/m)
  assert.match(stdout, /^0123456789abcdef0123456789abcdef$/m)
  assert.match(stdout, /inet 10\.0\.2\.15\/24/)
  assert.match(stdout, /^default via 10\.0\.2\.2 dev eth0/m)
  assert.match(stdout, /^02:00:00:0a:0b:0c$/m)
})

test('the clock is the host’s', async () => {
  await using guest = await house.running()
  const asked = Date.now() / 1000
  const { stdout } = await guest.run('date +%s')
  const answered = Date.now() / 1000
  assert.ok(Number(stdout) > asked - 2 && Number(stdout) < answered + 1, `${asked} ${stdout.trim()} ${answered}`)
})

test('modprobe finds the kernel’s modules', async () => {
  await using guest = await house.running()
  const { code, stderr, stdout } = await guest.run('modprobe fuse && modprobe wireguard && test -e /dev/fuse && lsmod', { user: '0' })
  assert.equal(code, 0, stderr)
  assert.match(stdout, /^wireguard /m)
})

test('what a Docker in the guest needs of the kernel is there: overlay mounts, bridges, veth pairs and nftables', async () => {
  await using guest = await house.running()
  const modules = 'overlay bridge br_netfilter veth nf_tables nft_compat nft_chain_nat xt_MASQUERADE xt_conntrack xt_addrtype'
  const script = `set -e
    for module in ${modules}; do modprobe $module; done
    mount -t tmpfs layers /tmp && cd /tmp && mkdir lower upper work merged && echo below > lower/file
    mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
    cat merged/file && rm merged/file && test -c upper/file
    ip link add docker0 type bridge && ip link add inside type veth && ip link set veth0 master docker0
    ip link set docker0 up && ip link set veth0 up && ip link set inside up
    until ip -o link show docker0 | grep -q LOWER_UP; do sleep 0.1; done; ls /sys/class/net/docker0/brif
    grep -c '^nf_tables ' /proc/modules`
  const { code, stdout, stderr } = await guest.run(script, { user: '0' })
  assert.equal(code, 0, stderr)
  assert.equal(stdout, 'below\nveth0\n1\n')
})

/** What an image may have where others have a bundle, and what must become of it: nothing. */
const NO_BUNDLES = `set -e
  mkdir -p /etc/pki/tls/certs /etc/pki/ca-trust/extracted/pem /elsewhere
  echo kept > /elsewhere/file
  ln -s /proc/self/root/elsewhere/file /etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem
  truncate -s 1024G /etc/pki/tls/certs/ca-bundle.crt
  mkfifo /etc/ssl/ca-bundle.pem
  ln -s cert.pem /etc/ssl/cert.pem
  mknod /etc/ssl/certs/ca-bundle.crt b 254 0
  rm /usr/local/share/ca-certificates/*; ln -s /elsewhere/file /usr/local/share/ca-certificates/dormouse-egress.crt`

test('an authority is trusted before the program runs, once over every start, and writes through nothing of the image', async () => {
  const config: GuestConfig = {
    ...configOf({ argv: ['sh', '-c', 'cat $SSL_CERT_FILE; exec sleep 1000'] }),
    authority: AUTHORITY,
  }
  const bundle = `${BUNDLE}\n${AUTHORITY}`
  const show = 'cat /etc/ssl/certs/ca-certificates.crt; echo; cat /etc/dormouse/egress.pem /usr/local/share/ca-certificates/*'
  const shown = `${bundle}\n${AUTHORITY}${AUTHORITY}`
  let disks: VmSpec['disks']
  {
    await using guest = await house.parked()
    disks = guest.spec.disks
    await guest.client.go(config, makeStep())
    assert.equal(await guest.logged(/T3Vy/), bundle)
    assert.equal((await guest.run(show)).stdout, shown)
    const { code, stderr } = await guest.run(NO_BUNDLES, { user: '0' })
    assert.equal(code, 0, stderr)
    await guest.client.shutdown({ graceMs: 10 }, makeStep())
    await guest.ended()
  }
  {
    await using guest = await house.parked({ disks })
    await guest.client.go(config, makeStep())
    assert.equal((await guest.run(show)).stdout, shown)
    const { stdout } = await guest.run('cat /elsewhere/file; stat -c "%F %s" /etc/pki/tls/certs/ca-bundle.crt; ls -A /etc/dormouse', {
      user: '0',
    })
    assert.equal(stdout, `kept\nregular file ${2 ** 40}\nca-bundle.pem\negress.pem\n`)
    await guest.run('rm -r /usr/local/share; ln -s /dev/shm /usr/local/share', { user: '0' })
    await guest.client.shutdown({ graceMs: 10 }, makeStep())
    await guest.ended()
  }
  {
    // Another file system is where update-ca-certificates would look: that alone keeps no program from starting.
    await using guest = await house.parked({ disks })
    await guest.client.go(config, makeStep())
    assert.equal((await guest.run('cat $SSL_CERT_FILE; ls -A /dev/shm')).stdout, bundle)
    await guest.run('rm -r /etc/dormouse; ln -s /dev/shm /etc/dormouse', { user: '0' })
    await guest.client.shutdown({ graceMs: 10 }, makeStep())
    await guest.ended()
  }
  await using guest = await house.parked({ disks })
  const message = /The authority of its proxy could not be kept in \/etc\/dormouse: /
  await assert.rejects(guest.client.go(config, makeStep()), { message })
  const ending = await guest.client.exited
  assert.equal(ending.code, 125)
  assert.match(ending.message, message)
})

test('a program that ends takes the machine with it, and its code is written down', async () => {
  await using guest = await house.running({ argv: ['sh', '-c', 'echo last words; exit 42'] })
  assert.deepEqual(await guest.client.exited, { code: 42, message: 'exited with code 42' })
  assert.deepEqual(await exitOf(guest), { started: true, code: 42, message: 'exited with code 42' })
  assert.deepEqual({ ...(await guest.vm.exited), atMs: 0 }, { kind: 'exited', code: 0, atMs: 0 })
  await guest.logged(/last words/)
})

const failures: [string, string[], string, number, RegExp][] = [
  ['a command that is not there', ['nosuch', 'x'], '', 127, /^command not found: nosuch$/],
  ['a file that may not be run', ['/etc/secret'], '', 126, /^permission denied: \/etc\/secret$/],
  ['a text that is no program', ['/bin/notprogram'], '', 126, /^exec format error: \/bin\/notprogram$/],
  ['a user that is not there', ['true'], 'carol', 126, /no such user in the image's \/etc\/passwd: carol/],
]
for (const [what, argv, user, code, message] of failures) {
  test(`${what} is told in words`, async () => {
    await using guest = await house.parked()
    await assert.rejects(guest.client.go(configOf({ argv, user }), makeStep()), { code: 'invalid_request' })
    const ending = await guest.client.exited
    assert.equal(ending.code, code)
    assert.match(ending.message, message)
    assert.deepEqual(await exitOf(guest), { started: false, ...ending })
  })
}

test('a program that eats all memory is told to have been killed for it', async () => {
  await using guest = await house.running({
    argv: ['sh', '-c', 'echo 1 > /proc/sys/vm/overcommit_memory; exec dd if=/dev/zero of=/dev/null bs=400M'],
  })
  assert.deepEqual(await guest.client.exited, { code: 137, message: 'killed by signal 9 (SIGKILL) - OOM' })
})

test('a graceful stop gives the program its own signal and the time to say goodbye', async () => {
  const script = 'trap "echo goodbye; exit 7" USR1; echo ready; while :; do sleep 0.1; done'
  await using guest = await house.running({ argv: ['sh', '-c', script], stopSignal: 'SIGUSR1' })
  await guest.logged(/ready/)
  await guest.client.shutdown({ graceMs: 20_000 }, makeStep())
  assert.equal((await guest.client.exited).code, 7)
  await guest.vm.exited
  await guest.logged(/goodbye/)
})

test('a program that does not end when asked is killed when its time is over', async () => {
  await using guest = await house.running({ argv: ['sh', '-c', 'trap "" TERM; echo ready; while :; do sleep 1; done'] })
  await guest.logged(/ready/)
  await guest.client.shutdown({ graceMs: 100 }, makeStep())
  assert.deepEqual(await guest.client.exited, { code: 137, message: 'killed by signal 9 (SIGKILL)' })
  await guest.vm.exited
})

test('what was written is there after a stop and a start', async () => {
  await using first = await house.running()
  await first.run('echo kept > /root/note; mkdir -p /opt/dir && mv /opt/dir /opt/moved; chmod 4711 /root/note', { user: '0' })
  await first.client.shutdown({ graceMs: 0 }, makeStep())
  await first.vm.exited
  const { disks, user } = first.spec
  await using second = await house.running({}, { disks, ...(user && { user }) })
  const { stdout } = await second.run('cat /root/note; stat -c %a /root/note; ls /opt; dmesg | grep -i "recovery" || echo clean', {
    user: '0',
  })
  assert.equal(stdout, 'kept\n4711\nmoved\nclean\n')
  assert.notEqual(second.client.bootNonce, first.client.bootNonce)
})

test('output that no one takes holds the program up no more than the end of a line', async () => {
  await using guest = await house.running({
    argv: ['sh', '-c', 'yes 0123456789 | head -c 20000000; echo; echo written-all; exec sleep 1000'],
  })
  // The shim drains into a file of bounded size; the last line gets there whatever came before.
  await guest.logged(/written-all/)
})

test('an init as the program is process 1, the agent goes on beside it, and both end together', async () => {
  await using guest = await house.running({ kind: 'systemd', argv: ['/sbin/init'], stopSignal: 'SIGRTMIN+3' })
  assert.match(await guest.logged(/init is process/), /init is process 1 in 0::\//)
  const { stdout } = await guest.run('cat /proc/1/comm; cat /proc/self/cgroup; ls /sys/fs/cgroup | grep -c cgroup.procs')
  assert.match(stdout, /^(init|sh)\n0::\/exec\/1\n1\n/)
  await guest.client.freeze({}, makeStep())
  await guest.client.thaw(makeStep())
  await guest.client.shutdown({ graceMs: 20_000 }, makeStep())
  const ending = await guest.client.exited
  assert.deepEqual(ending, { code: 0, message: 'its init shut the machine down' })
  assert.deepEqual(await exitOf(guest), { started: true, ...ending })
  await guest.logged(/told to power off/)
})

test('a guest that is only parked is shut down at once', async () => {
  await using guest = await house.parked()
  assert.equal(guest.client.hello.phase, 'parked')
  await assert.rejects(guest.client.exec({ command: ['true'] }, makeStep()), { code: 'invalid_state' })
  await guest.client.shutdown({ graceMs: 0 }, makeStep())
  await guest.vm.exited
})

test('the other board does the same', async () => {
  await using q35 = await guestHouse('qemu')
  await using guest = await q35.running({ argv: ['sh', '-c', 'trap "exit 3" TERM; while :; do sleep 0.1; done'] })
  assert.equal((await guest.run('ip route')).code, 0)
  await guest.client[Symbol.asyncDispose]()
  guest.client = await GuestClient.connect(await guest.vm.connectGuest(makeStep()), makeStep())
  assert.equal(guest.client.hello.phase, 'running')
  await guest.client.shutdown({ graceMs: 20_000 }, makeStep())
  assert.equal((await guest.client.exited).code, 3)
  assert.deepEqual({ ...(await guest.vm.exited), atMs: 0 }, { kind: 'exited', code: 0, atMs: 0 })
})
