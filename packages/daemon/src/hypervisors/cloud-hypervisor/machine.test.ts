import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { DiskSpec } from '../vm-spec.ts'
import { bootCommandLine, diskDescriptors, type Machine, restoreCommandLine, slotsOf } from './machine.ts'

const machine: Machine = { vcpus: 2, memoryMib: 512, hasTap: true }
const rootfs: DiskSpec = { role: 'rootfs', path: '/images/rootfs', format: 'raw', readOnly: true }
const overlay: DiskSpec = { role: 'overlay', path: '/disks/top', format: 'raw', readOnly: false }

const wordAfter = (argv: readonly string[], option: string): string | undefined => argv[argv.indexOf(option) + 1]

test('a machine boots on memory that is mapped privately, from descriptors alone', () => {
  const argv = bootCommandLine(machine, { program: '/opt/ch', disks: [rootfs, overlay], mac: '02:00:00:00:00:01', sharesMemory: false })
  assert.deepEqual(argv.slice(0, 5), ['/opt/ch', '--api-socket', 'fd=10', '--seccomp', 'true'])
  assert.equal(wordAfter(argv, '--cpus'), 'boot=2')
  assert.equal(wordAfter(argv, '--memory-zone'), 'id=ram,size=512M,file=/proc/self/fd/17,shared=off')
  assert.equal(wordAfter(argv, '--vsock'), 'id=vsock,cid=3,socket=vsock.sock')
  assert.equal(wordAfter(argv, '--net'), 'id=nic,fd=18,mac=02:00:00:00:00:01')
  const from = argv.indexOf('--disk')
  assert.deepEqual(argv.slice(from + 1, from + 4), [
    'id=rootfs,path=/proc/self/fd/30,readonly=on,serial=rootfs,image_type=raw',
    'id=overlay,path=/proc/self/fd/31,readonly=off,serial=overlay,image_type=raw',
    'id=empty-2,path=/proc/self/fd/21,readonly=on,serial=empty-2,image_type=raw',
  ])
  assert.ok(!argv.some((word) => word.includes('/images/') || word.includes('/disks/')))
  assert.deepEqual(diskDescriptors([rootfs, overlay]), [
    { number: 30, kind: 'read', file: '/images/rootfs' },
    { number: 31, kind: 'write', file: '/disks/top' },
  ])
})

test('a rate is one budget of all disks, four seconds of it at once', () => {
  const argv = bootCommandLine(machine, { program: '/opt/ch', disks: [rootfs, overlay], sharesMemory: true, diskIoBps: 1_000_000 })
  assert.equal(wordAfter(argv, '--rate-limit-group'), 'id=disks,bw_size=4000000,bw_refill_time=4000')
  assert.equal(argv.filter((word) => word.endsWith(',rate_limit_group=disks')).length, 2)
  assert.match(String(wordAfter(argv, '--memory-zone')), /shared=on$/)
})

test('a restore reads what lies in its own directory, and copies none of the memory that it stands on', () => {
  const argv = restoreCommandLine(machine, { program: '/opt/ch' }, { resumes: false })
  assert.equal(
    wordAfter(argv, '--restore'),
    'source_url=file:///proc/self/cwd/restore,memory_restore_mode=copy,prefault=off,resume=false,net_fds=[nic@[18]]',
  )
  assert.ok(
    !restoreCommandLine({ ...machine, hasTap: false }, { program: '/opt/ch' }, { resumes: true })
      .join()
      .includes('net_fds'),
  )
})

test('volumes, and disks that are chains of layers, are refused with the reason', () => {
  assert.throws(() => slotsOf([{ ...overlay, role: 'volume-0' }]), { code: 'not_supported', message: /no volumes/ })
  for (const disk of [
    { ...overlay, format: 'qcow2' } as const,
    { ...overlay, backing: [{ path: '/b', format: 'raw' }] } as const,
    { ...overlay, limitBytes: 1 },
  ])
    assert.throws(() => slotsOf([disk]), { code: 'not_supported', message: /chain of layers/ })
})
