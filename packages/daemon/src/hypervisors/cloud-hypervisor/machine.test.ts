import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { DiskSpec } from '../vm-spec.ts'
import { answerOf, bootCommandLine, diskDescriptors, type Machine, restoreCommandLine, slotsOf, volumesOf } from './machine.ts'

const machine: Machine = { vcpus: 2, memoryMib: 512, hasTap: true }
const rootfs: DiskSpec = { role: 'rootfs', path: '/images/rootfs', format: 'raw', readOnly: true }
const overlay: DiskSpec = { role: 'overlay', path: '/disks/top', format: 'raw', readOnly: false }

const vmm = { program: '/opt/ch', version: '53.0.0' }

const wordAfter = (argv: readonly string[], option: string): string | undefined => argv[argv.indexOf(option) + 1]

test('a machine boots on memory that is mapped privately, from descriptors alone', () => {
  const argv = bootCommandLine(machine, { ...vmm, disks: [rootfs, overlay], mac: '02:00:00:00:00:01', sharesMemory: false })
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
  const argv = bootCommandLine(machine, { ...vmm, disks: [rootfs, overlay], sharesMemory: true, diskIoBps: 1_000_000 })
  assert.equal(wordAfter(argv, '--rate-limit-group'), 'id=disks,bw_size=4000000,bw_refill_time=4000')
  assert.equal(argv.filter((word) => word.endsWith(',rate_limit_group=disks')).length, 2)
  assert.match(String(wordAfter(argv, '--memory-zone')), /shared=on$/)
})

test('where a pause does not wait for disks, they do one thing after another', () => {
  for (const [version, isInTurn] of [
    ['52.0.0', true],
    ['53.0.0', false],
    ['53.1', false],
  ] as const) {
    const argv = bootCommandLine(machine, { ...vmm, version, disks: [rootfs, overlay], sharesMemory: false })
    const disks = argv.filter((word) => word.includes('image_type=raw'))
    assert.equal(disks.length, 3)
    for (const disk of disks) assert.equal(disk.endsWith(',_disable_io_uring=on,_disable_aio=on'), isInTurn, disk)
  }
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

test('volumes are opened by names that the shim answers, behind the slots that every machine has', () => {
  const volume = { role: 'volume-1', path: '/volumes/one', format: 'raw', readOnly: false, limitBytes: 2 ** 30 } as const
  const disks = [{ ...volume, role: 'volume-2', readOnly: true }, rootfs, volume] as const
  const argv = bootCommandLine(machine, { ...vmm, disks, sharesMemory: false })
  const told = argv.slice(argv.indexOf('--disk') + 1).filter((word) => word.includes('serial='))
  assert.deepEqual(
    told.map((word) => word.split(',').slice(0, 3).join()),
    [
      'id=rootfs,path=/proc/self/fd/30,readonly=on',
      'id=empty-1,path=/proc/self/fd/21,readonly=on',
      'id=empty-2,path=/proc/self/fd/21,readonly=on',
      'id=volume-1,path=/proc/dormouse/volume-1,readonly=off',
      'id=volume-2,path=/proc/dormouse/volume-2,readonly=on',
    ],
  )
  assert.deepEqual(diskDescriptors(disks), [{ number: 30, kind: 'read', file: '/images/rootfs' }])
  assert.deepEqual(volumesOf(disks).map(answerOf), [
    { name: 'volume-1', kind: 'rw', file: '/volumes/one' },
    { name: 'volume-2', kind: 'ro', file: '/volumes/one' },
  ])
})

test('disks that are chains of layers, and one volume too many, are refused with the reason', () => {
  assert.throws(() => slotsOf([{ ...overlay, role: 'volume-3' }]), { code: 'not_supported', message: /takes 3 volumes/ })
  for (const disk of [{ ...overlay, format: 'qcow2' } as const, { ...overlay, backing: [{ path: '/b', format: 'raw' }] } as const])
    assert.throws(() => slotsOf([disk]), { code: 'not_supported', message: /chain of layers/ })
})
