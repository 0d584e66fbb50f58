import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MICROVM, Q35 } from './boards.ts'
import { commandLine, FD, type Machine, type Wiring } from './command-line.ts'
import { diskDescriptors, roleOf } from './disk-nodes.ts'

const machine: Machine = {
  board: Q35,
  acceleration: 'tcg',
  vcpus: 2,
  memoryMib: 512,
  kernelPath: '/k/vmlinux',
  initrdPath: '/k/initrd',
  tscKhz: 2_445_422,
}
const rootfs = { role: 'rootfs', path: '/images/root,fs', format: 'raw', readOnly: true } as const
const overlay = { role: 'overlay', path: '/overlay', format: 'raw', readOnly: false } as const
const wiring = (changes: Partial<Wiring> = {}): Wiring => ({
  id: 'i1',
  entry: 'wake',
  disks: [rootfs, overlay],
  nic: { mac: '02:00:00:00:00:01' },
  ...changes,
})
/** The values of an option, in order. */
const values = (argv: readonly string[], option: string): string[] =>
  argv.flatMap((word, index) => (argv[index - 1] === option ? [word] : []))
const devices = (argv: readonly string[]): string[] => values(argv, '-device')

test('behind a TAP the card has it as its descriptor, at the golden boot too', () => {
  for (const [entry, nic] of [
    ['wake', { mac: '02:00:00:00:00:01' }],
    ['capture', undefined],
  ] as const) {
    const argv = commandLine({ ...machine, hasTap: true }, { id: 'i1', entry, disks: [], ...(nic === undefined ? {} : { nic }) })
    assert.deepEqual(values(argv, '-netdev'), ['tap,id=net,fd=18'])
    assert.ok(devices(argv).some((device) => device.includes('id=nic') && device.includes('netdev=net')))
  }
})

test('where the kernel carries the frames, QEMU has its device as a descriptor', () => {
  const argv = commandLine({ ...machine, acceleration: 'kvm', hasTap: true, vhost: true }, wiring())
  assert.deepEqual(values(argv, '-netdev'), [`tap,id=net,fd=18,vhost=on,vhostfd=${FD.VHOST}`])
})

test('QEMU runs in its sandbox, without defaults, and ends instead of rebooting', () => {
  const argv = commandLine(machine, wiring())
  assert.deepEqual(values(argv, '-sandbox'), ['on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'])
  for (const option of ['-nodefaults', '-no-user-config', '-no-reboot']) assert.ok(argv.includes(option))
})

test('every block node names its driver, and a guest file name never reaches the command line', () => {
  const argv = commandLine(machine, wiring())
  assert.ok(!argv.some((word) => word.includes('/images/') || word.includes('/overlay')))
  const nodes = values(argv, '-blockdev').filter((node) => node.startsWith('{'))
  assert.equal(nodes.length, 2)
  for (const node of nodes) {
    const { driver, file } = JSON.parse(node)
    assert.equal(driver, 'raw')
    assert.equal(file.driver, 'file')
  }
  // What is each instance's own is locked; what all may have and no one writes is not, as other VMMs lock the whole of it.
  assert.deepEqual(
    nodes.map((node) => JSON.parse(node).file.locking),
    ['off', 'on'],
  )
  assert.equal(JSON.parse(nodes[0] ?? '')['read-only'], true)
  assert.equal(JSON.parse(nodes[1] ?? '')['read-only'], false)
})

test('a full disk of the host is told to the guest that writes, and pauses no VM', () => {
  const disks = devices(commandLine(machine, wiring())).filter((device) => device.includes('serial='))
  assert.deepEqual(
    disks.map((device) => [/serial=([\w-]+)/.exec(device)?.[1], device.endsWith(',werror=report,rerror=report')]),
    // Slots of volumes too: one may come while it runs.
    [
      ['rootfs', false],
      ['overlay', true],
      ['volume-0', true],
      ['volume-1', true],
      ['volume-2', true],
    ],
  )
})

test('a qcow2 disk gets no backing file from what is written in it', () => {
  const argv = commandLine(machine, wiring({ disks: [{ ...overlay, format: 'qcow2' }] }))
  assert.equal(JSON.parse(values(argv, '-blockdev')[1] ?? '').backing, null)
})

test('a chain is one node in another, the top alone writable, each over a descriptor of its own', () => {
  const backing = [
    { path: '/disks/two.qcow2', format: 'qcow2' },
    { path: '/disks/three.raw', format: 'raw' },
  ] as const
  const disks = [rootfs, { ...overlay, format: 'qcow2', backing }] as const
  const argv = commandLine(machine, wiring({ disks }))
  const top = JSON.parse(values(argv, '-blockdev')[1] ?? '')
  const chain = [top, top.backing, top.backing.backing]
  assert.deepEqual(
    chain.map((node) => [node.driver, node['read-only'], node.file['read-only'], node.file['auto-read-only']]),
    [
      ['qcow2', false, false, false],
      ['qcow2', true, true, false],
      ['raw', true, true, false],
    ],
  )
  assert.equal(chain[2].backing, undefined)
  assert.equal(new Set(chain.map((node) => node['node-name'])).size, 3)
  const descriptors = diskDescriptors(disks)
  assert.deepEqual(
    descriptors.map((one) => [one.kind, 'file' in one ? one.file : '']),
    [
      ['read', rootfs.path],
      ['write', overlay.path],
      ['read', '/disks/two.qcow2'],
      ['read', '/disks/three.raw'],
    ],
  )
  // Each of the disk's layers with its name, by which it is known again.
  const notes = ['', ',opaque=overlay', ',opaque=two.qcow2', ',opaque=three.raw']
  assert.deepEqual(
    descriptors.map(({ number }, index) => `fd=${number},set=${number}${notes[index]}`),
    values(argv, '-add-fd'),
  )
  assert.deepEqual(
    chain.map(({ file }) => file.filename),
    descriptors.slice(1).map(({ number }) => `/dev/fdset/${number}`),
  )
})

test('as many disks and layers as there may be have descriptors of their own, below those of the shim', () => {
  const backing = Array.from({ length: 9 }, () => ({ path: '/disks/below.qcow2', format: 'qcow2' }) as const)
  const disk = { ...overlay, format: 'qcow2', backing } as const
  const numbers = diskDescriptors(Array.from({ length: Q35.diskSlots }, (_, slot) => ({ ...disk, role: roleOf(slot) }))).map(
    ({ number }) => number,
  )
  assert.equal(new Set(numbers).size, 60)
  // OWN_DESCRIPTORS in shim/plan.h.
  assert.ok(Math.max(...numbers) < 100 && Math.min(...numbers) > Math.max(...Object.values(FD)))
  assert.throws(() => diskDescriptors([{ ...disk, backing: [...backing, ...backing] }]), { code: 'not_supported' })
  assert.throws(() => diskDescriptors([{ ...overlay, backing }]), /raw layer with something below/)
})

for (const board of [Q35, MICROVM]) {
  test(`on ${board.machine} every slot is filled, at the same place whatever it holds`, () => {
    const places = (argv: readonly string[]): string[] => devices(argv).map((device) => /bus=[^,]+(,addr=[^,]+)?/.exec(device)?.[0] ?? '')
    const golden = commandLine({ ...machine, board }, { id: 'g', entry: 'capture', disks: [] })
    const woken = commandLine({ ...machine, board }, wiring())
    assert.deepEqual(places(woken), places(golden))
    assert.equal(devices(woken).filter((device) => device.startsWith('virtio-blk')).length, board.diskSlots)
    assert.equal(new Set(places(golden).filter((place) => !place.includes('ports.0'))).size, board.diskSlots + 2)
  })
}

test('a golden boot is captured without a network backend and written through to its memory', () => {
  const argv = commandLine(machine, { id: 'g', entry: 'capture', disks: [] })
  assert.deepEqual(values(argv, '-netdev'), [])
  assert.match(values(argv, '-object')[0] ?? '', /share=on$/)
  assert.ok(!argv.includes('-incoming'))
})

test('a wake maps its base privately and needs no kernel', () => {
  const argv = commandLine(machine, wiring())
  assert.equal(values(argv, '-object')[0], `memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/${FD.MEMORY},share=off`)
  assert.deepEqual(values(argv, '-incoming'), ['defer'])
  assert.ok(!argv.includes('-kernel'))
  // A copy that is its own is written through, for the shim to see.
  assert.match(values(commandLine(machine, { ...wiring(), ownsMemory: true }), '-object')[0] ?? '', /share=on$/)
})

test('a guest under TCG is told its time stamp frequency, one under KVM is not', () => {
  const boot = wiring({ entry: 'boot' })
  assert.match(values(commandLine(machine, boot), '-append')[0] ?? '', / no_timer_check tsc_early_khz=2445422 tsc=reliable$/)
  const kvm = commandLine({ ...machine, acceleration: 'kvm' }, boot)
  assert.ok(!values(kvm, '-append')[0]?.includes('tsc'))
  assert.deepEqual([values(kvm, '-accel'), values(kvm, '-cpu')], [['kvm'], ['host']])
})

test('more volumes than slots are refused, in words that a caller can use', () => {
  const disks = [{ ...overlay, role: 'volume-3' }] as const
  assert.throws(() => commandLine(machine, wiring({ disks })), { code: 'not_supported', message: /at most 3 volumes/ })
})

test('nothing that would discard pages of a shared base is ever on the command line', () => {
  const text = commandLine(machine, wiring()).join(' ')
  assert.doesNotMatch(text, /balloon|free-page|virtio-mem/)
})

test('devices of the host are each behind a root port of their own, in order, away from all other places', () => {
  const hostDevices = [
    { kind: 'pci', address: '0000:65:00.0' },
    { kind: 'mdev', uuid: '11111111-2222-3333-4444-555555555555' },
  ] as const
  const argv = commandLine(machine, wiring({ entry: 'boot', hostDevices }))
  assert.deepEqual(devices(argv).slice(-4), [
    'pcie-root-port,id=port0,bus=pcie.0,addr=0x10,chassis=1,hotplug=off',
    'vfio-pci,id=device0,bus=port0,host=0000:65:00.0',
    'pcie-root-port,id=port1,bus=pcie.0,addr=0x11,chassis=2,hotplug=off',
    'vfio-pci,id=device1,bus=port1,sysfsdev=/sys/bus/mdev/devices/11111111-2222-3333-4444-555555555555',
  ])
  assert.deepEqual(values(argv, '-uuid'), ['11111111-2222-3333-4444-555555555555'])
  assert.deepEqual(values(argv, '-object'), ['memory-backend-ram,id=ram,size=512M,merge=off'])
  const places = devices(argv).flatMap((device) => /bus=pcie\.0,addr=\w+/.exec(device)?.[0] ?? [])
  assert.equal(new Set(places).size, places.length)
  // All others are as without them.
  assert.deepEqual(devices(argv).slice(0, -4), devices(commandLine(machine, wiring({ entry: 'boot' }))))
  assert.deepEqual(values(commandLine(machine, wiring()), '-uuid'), [])
})

test('what is no device of the host gets no place on the command line, and a board without PCI takes none', () => {
  for (const device of [
    { kind: 'pci', address: '0000:65:00.0,x-vga=on' },
    { kind: 'pci', address: '../0000:65:00.0' },
    { kind: 'mdev', uuid: '../../../etc' },
  ] as const)
    assert.throws(() => commandLine(machine, wiring({ entry: 'boot', hostDevices: [device] })), { code: 'internal_error' })
  const one = { kind: 'pci', address: '0000:65:00.0' } as const
  assert.throws(() => commandLine({ ...machine, board: MICROVM }, wiring({ entry: 'boot', hostDevices: [one] })), { code: 'not_supported' })
  const many = Array.from({ length: 16 }, () => one)
  assert.throws(() => commandLine(machine, wiring({ entry: 'boot', hostDevices: many })), { code: 'not_supported', message: /at most 15/ })
})
