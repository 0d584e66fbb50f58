/** What is asked, held to facts of Firecracker's published API document (src/firecracker/swagger/firecracker.yaml, 1.15.1 and 1.16.1). */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { VmmRequest } from '../vmm-api.ts'
import { disksBehindSlots, FD, kernelCommandLine, type Machine, SLOTS } from './machine.ts'
import {
  bootRequests,
  describeRequest,
  isSaved,
  loadRequest,
  refreshDrive,
  saveAllRequest,
  saveStateRequest,
  shutdownRequest,
  stateRequest,
} from './requests.ts'

type Value = 'text' | 'flag' | 'number' | readonly string[] | Shape | readonly [Shape]
interface Shape {
  readonly required: Readonly<Record<string, Value>>
  readonly optional?: Readonly<Record<string, Value>>
}

/** What both versions know of what is asked; others of their fields are not used. */
const DOCUMENT: Readonly<Record<string, Shape | undefined>> = {
  'GET /': undefined,
  'PUT /actions': { required: { action_type: ['FlushMetrics', 'InstanceStart', 'SendCtrlAltDel'] } },
  'PUT /boot-source': { required: { kernel_image_path: 'text' }, optional: { boot_args: 'text', initrd_path: 'text' } },
  'PUT /drives/{drive_id}': {
    required: { drive_id: 'text', is_root_device: 'flag' },
    optional: { path_on_host: 'text', is_read_only: 'flag', cache_type: ['Unsafe', 'Writeback'], io_engine: ['Sync', 'Async'] },
  },
  'PATCH /drives/{drive_id}': {
    required: { drive_id: 'text' },
    optional: { path_on_host: 'text' },
  },
  'PUT /machine-config': {
    required: { vcpu_count: 'number', mem_size_mib: 'number' },
    optional: { smt: 'flag', track_dirty_pages: 'flag' },
  },
  'PUT /network-interfaces/{iface_id}': { required: { iface_id: 'text', host_dev_name: 'text' }, optional: { guest_mac: 'text' } },
  'PUT /snapshot/create': { required: { snapshot_path: 'text', mem_file_path: 'text' }, optional: { snapshot_type: ['Full', 'Diff'] } },
  'PUT /snapshot/load': {
    required: { snapshot_path: 'text' },
    optional: {
      mem_backend: { required: { backend_type: ['File', 'Uffd'], backend_path: 'text' } },
      resume_vm: 'flag',
    },
  },
  'PATCH /vm': { required: { state: ['Paused', 'Resumed'] } },
  'PUT /vsock': { required: { guest_cid: 'number', uds_path: 'text' } },
}

function assertFits(value: unknown, fact: Value, where: string): void {
  if (fact === 'text') assert.equal(typeof value, 'string', where)
  else if (fact === 'flag') assert.equal(typeof value, 'boolean', where)
  else if (fact === 'number') assert.ok(Number.isInteger(value), where)
  else if ('required' in fact) assertShape(value, fact, where)
  else if (typeof fact[0] === 'string') assert.ok((fact as readonly unknown[]).includes(value), `${where} is ${String(value)}`)
  else {
    assert.ok(Array.isArray(value), where)
    for (const one of value) assertShape(one, fact[0] as Shape, where)
  }
}

function assertShape(value: unknown, { required, optional = {} }: Shape, where: string): void {
  const given = value as Record<string, unknown>
  for (const name of Object.keys(required)) assert.ok(name in given, `${where} has no ${name}`)
  for (const [name, one] of Object.entries(given)) {
    const fact = { ...required, ...optional }[name]
    assert.ok(fact !== undefined, `${where} has ${name}, which is not known`)
    assertFits(one, fact, `${where}, ${name}`)
  }
}

function assertDocumented({ method, path, body }: VmmRequest): void {
  const known = `${method} ${path.replace(/^(\/drives|\/network-interfaces)\/\w+$/, (_, noun) => `${noun}/{${noun === '/drives' ? 'drive' : 'iface'}_id}`)}`
  assert.ok(known in DOCUMENT, known)
  const shape = DOCUMENT[known]
  if (shape === undefined) assert.equal(body, undefined)
  else assertShape(body, shape, known)
}

const machine: Machine = { vcpus: 2, memoryMib: 512, hasTap: true, kernelPath: '/k/vmlinux', initrdPath: '/k/initrd' }

test('everything that is asked is in the document, with what it wants and nothing that it does not know', () => {
  const all = [
    ...bootRequests(machine, SLOTS),
    ...SLOTS.map(refreshDrive),
    ...[loadRequest('state'), saveAllRequest(), saveStateRequest()],
    ...[stateRequest('Paused'), stateRequest('Resumed'), describeRequest, shutdownRequest],
  ]
  for (const request of all) assertDocumented(request)
})

test('a machine is whole before it starts', () => {
  const drives = ['rootfs', 'overlay', 'modules', 'volume_0', 'volume_1', 'volume_2'].map((drive) => `/drives/${drive}`)
  const paths = bootRequests(machine, SLOTS).map(({ path }) => path)
  assert.deepEqual(paths, ['/machine-config', '/boot-source', ...drives, '/network-interfaces/nic', '/vsock', '/actions'])
  assert.ok(!bootRequests({ ...machine, hasTap: false }, SLOTS).some(({ path }) => path.startsWith('/network-interfaces/')))
})

test('what its guest flushes is flushed, and what it may not write it cannot', () => {
  const drives = bootRequests(machine, SLOTS).flatMap(({ path, body }) => (path.startsWith('/drives/') ? [body] : []))
  assert.deepEqual(
    drives.map((drive) => [drive, (drive as { cache_type: string }).cache_type]).map(([, cache]) => cache),
    SLOTS.map(() => 'Writeback'),
  )
  assert.deepEqual(
    drives.map((drive) => (drive as { is_read_only: boolean }).is_read_only),
    [true, false, true, false, false, false],
  )
})

test('names of files and sockets are the same in every VM, so that a state loads in any', () => {
  const state = JSON.stringify([bootRequests(machine, SLOTS).slice(2), loadRequest('state')])
  const names = [...state.matchAll(/"([^"]*(?:\/|sock)[^"]*)"/g)].map(([, name]) => String(name))
  for (const name of names)
    assert.match(
      name,
      /^(\/proc\/self\/fd\/\d+|\/proc\/dormouse\/volume-\d|vsock\.sock|\/(drives|network-interfaces|snapshot|vsock|actions)\b.*)$/,
    )
})

test('its kernel is told what its machine cannot tell', () => {
  const words = kernelCommandLine(SLOTS).split(' ')
  for (const word of ['dormouse.off=reboot', 'reboot=k', 'panic=-1', 'dormouse.disks=rootfs,overlay,modules,volume-0,volume-1,volume-2'])
    assert.ok(words.includes(word), word)
})

test('a state is known to be whole by one refusal alone', () => {
  // In the words of 1.15.1 and 1.16.1.
  assert.ok(isSaved('Create snapshot error: Cannot perform open on the memory backing file: No such file or directory (os error 2)'))
  assert.ok(!isSaved('Create snapshot error: Cannot perform open on the snapshot backing file: No such file or directory (os error 2)'))
  assert.ok(!isSaved('Create snapshot error: Cannot perform flush on the memory backing file: No space left on device (os error 28)'))
  assert.ok(!isSaved('Create snapshot error: Cannot save the microVM state: …'))
})

test('a free slot holds an empty file, volumes are found by name, and a disk that cannot be had is refused', () => {
  const overlay = { role: 'overlay', path: '/disks/a.raw', format: 'raw', readOnly: false } as const
  const behind = disksBehindSlots([overlay, { ...overlay, role: 'volume-1', path: '/disks/v.raw' }])
  assert.deepEqual(behind.descriptors, [
    { number: FD.DISK, kind: 'blank' },
    { number: FD.DISK + 1, kind: 'write', file: '/disks/a.raw' },
    { number: FD.DISK + 2, kind: 'blank' },
  ])
  assert.deepEqual(behind.answers, [
    { name: 'volume-0', kind: 'blank' },
    { name: 'volume-1', kind: 'rw', file: '/disks/v.raw' },
    { name: 'volume-2', kind: 'blank' },
  ])
  assert.throws(() => disksBehindSlots([{ ...overlay, format: 'qcow2' }]), { code: 'internal_error' })
  assert.throws(() => disksBehindSlots([{ ...overlay, backing: [{ path: '/disks/b.raw', format: 'raw' }] }]), { code: 'internal_error' })
  assert.throws(() => disksBehindSlots([{ ...overlay, role: 'volume-3' }]), { code: 'not_supported' })
  assert.throws(() => disksBehindSlots([{ ...overlay, readOnly: true }]), { code: 'internal_error' })
})
