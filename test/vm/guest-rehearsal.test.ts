/**
 * A guest that lives whole lives before the one that counts. After each it is parked as it was before; where anything is left of it the
 * machine goes off, so that no one can come to use it.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { GuestClient, type GuestConfig } from '../../packages/daemon/src/guest/guest-client.ts'
import { makeStep } from '../harness/qemu-driver.ts'
import { configOf, type Guest, type GuestHouse, guestHouse } from './guest-story.ts'

let house: GuestHouse
before(async () => {
  house = await guestHouse('qemu-microvm')
})
after(() => house?.[Symbol.asyncDispose]())

async function reconnect(guest: Guest): Promise<void> {
  await guest.client.close()
  guest.client = await GuestClient.connect(await guest.vm.connectGuest(makeStep()), makeStep())
}

/** A life up to where its workload runs. */
async function begin(guest: Guest, changes: Partial<GuestConfig> = {}): Promise<void> {
  await guest.client.rehearse(makeStep())
  await reconnect(guest)
  assert.equal(guest.client.hello.phase, 'parked')
  await guest.client.go({ ...configOf(), hostname: 'rehearsal', machineId: '1'.repeat(32), ...changes }, makeStep())
}

/** To its end, and the next handshake. */
async function end(guest: Guest): Promise<void> {
  await guest.client.shutdown({ graceMs: 0 }, makeStep())
  await guest.client.exited
  await reconnect(guest)
}

/** What a workload can see of its machine. */
const LOOK = [
  // The modules are mounted beside the rest, now earlier and now later.
  'sort /proc/mounts',
  'cut -d" " -f1-3 /proc/modules',
  'ls -R /dev',
  'find /sys/fs/cgroup -type d | sort',
  'cat /sys/fs/cgroup/cgroup.events',
  // Of a card that was up a moment ago the kernel tells late that it is up again.
  'ip addr | sed s/NO-CARRIER,//; ip route; ip -6 route',
  'cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6 /proc/sys/net/ipv4/conf/eth0/arp_notify',
  'grep . /sys/block/vd*/size /sys/block/vd*/ro',
  'find / -xdev | sort',
  'cat /etc/hosts /etc/hostname /etc/resolv.conf; hostname',
  'cat /proc/sysvipc/*',
].join('\n')

/** Of what a workload can leave behind, all that its end does not take along by itself. */
const LEAVE = [
  'echo left > /dev/shm/left',
  'echo left > /etc/hosts',
  'mkdir /sys/fs/cgroup/left',
  'ip addr add 192.0.2.7/32 dev eth0',
  'ip link set eth0 mtu 1400',
  // It would outlive the exec that started it, and the workload.
  'setsid sleep 1000001 >/dev/null 2>&1 &',
].join('\n')

test('a guest that has rehearsed is as one that has not', { timeout: 120_000 }, async () => {
  await using fresh = await house.running()
  await using guest = await house.parked()
  const { bootNonce } = guest.client.hello
  for (let life = 0; life < 2; life++) {
    await begin(guest)
    assert.deepEqual(await guest.run(LEAVE), { code: 0, message: 'exited', stdout: '', stderr: '' })
    await end(guest)
    assert.equal(guest.client.hello.phase, 'parked')
    assert.equal(guest.client.hello.bootNonce, bootNonce)
  }
  await guest.client.go(configOf(), makeStep())
  assert.notEqual(guest.client.bootNonce, bootNonce)
  assert.equal((await guest.run(LOOK)).stdout, (await fresh.run(LOOK)).stdout)
  // Of what its boot had to complain of, which a busy host is the cause of, both know.
  const complaints = 'dmesg | grep -iE "error|fail|warn|bug:|stall|call trace|in use"'
  assert.equal((await guest.run(complaints)).stdout, (await fresh.run(complaints)).stdout)
  assert.equal((await guest.run('ps | grep "[s]leep 1000001"')).stdout, '')
})

test('a machine in which a life has left something goes off', { timeout: 120_000 }, async () => {
  await using guest = await house.parked()
  await begin(guest, { disks: { overlay: false, modules: true, volumes: [] } })
  // No process has the disk then, and still the kernel holds it.
  const told = await guest.run('for disk in /dev/vd*; do mkswap $disk && swapon $disk && break; done 2>&1; cat /proc/swaps')
  assert.match(told.stdout, /^\/dev\/vd/m)
  await guest.client.shutdown({ graceMs: 0 }, makeStep())
  await guest.client.exited
  const exit = await guest.vm.exited
  assert.equal(exit.kind, 'exited')
})

test('only a parked guest rehearses, and none within a rehearsal', { timeout: 120_000 }, async () => {
  await using guest = await house.parked()
  await guest.client.rehearse(makeStep())
  await reconnect(guest)
  await assert.rejects(guest.client.rehearse(makeStep()), { code: 'invalid_state' })
  await guest.client.go(configOf(), makeStep())
  await assert.rejects(guest.client.rehearse(makeStep()), { code: 'invalid_state' })
  await end(guest)
  await guest.client.go(configOf(), makeStep())
  await assert.rejects(guest.client.rehearse(makeStep()), { code: 'invalid_state' })
})
