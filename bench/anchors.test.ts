/** What VMMs are asked for by hand, held to what their projects publish. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { VmmRequest } from '../packages/daemon/src/hypervisors/vmm-api.ts'
import { BARE_CLOUD_HYPERVISOR } from './anchors/bare-cloud-hypervisor.ts'
import { BARE_FIRECRACKER } from './anchors/bare-firecracker.ts'
import type { BareVmm } from './anchors/bare-vmm.ts'
import { disksOver } from './both-sides.ts'

type Field = 'string' | 'number' | 'boolean' | readonly string[]
interface Body {
  readonly required: readonly string[]
  readonly fields: Readonly<Record<string, Field | Body>>
}

/** Firecracker's src/firecracker/swagger/firecracker.yaml, 1.15.1 and 1.16.1, as far as it is used here. */
const FIRECRACKER: Readonly<Record<string, Body>> = {
  'PUT /machine-config': {
    required: ['vcpu_count', 'mem_size_mib'],
    fields: { vcpu_count: 'number', mem_size_mib: 'number', smt: 'boolean', track_dirty_pages: 'boolean' },
  },
  'PUT /boot-source': {
    required: ['kernel_image_path'],
    fields: { kernel_image_path: 'string', initrd_path: 'string', boot_args: 'string' },
  },
  'PUT /drives/{drive_id}': {
    required: ['drive_id', 'is_root_device'],
    fields: {
      ...{ drive_id: 'string', path_on_host: 'string', is_root_device: 'boolean', is_read_only: 'boolean' },
      ...{ cache_type: ['Unsafe', 'Writeback'], io_engine: ['Sync', 'Async'] },
    },
  },
  'PUT /vsock': { required: ['guest_cid', 'uds_path'], fields: { guest_cid: 'number', uds_path: 'string' } },
  'PUT /actions': { required: ['action_type'], fields: { action_type: ['FlushMetrics', 'InstanceStart', 'SendCtrlAltDel'] } },
  'PATCH /vm': { required: ['state'], fields: { state: ['Paused', 'Resumed'] } },
  'PUT /snapshot/create': {
    required: ['snapshot_path', 'mem_file_path'],
    fields: { snapshot_path: 'string', mem_file_path: 'string', snapshot_type: ['Full', 'Diff'] },
  },
  'PUT /snapshot/load': {
    required: ['snapshot_path'],
    fields: {
      snapshot_path: 'string',
      mem_backend: {
        required: ['backend_type', 'backend_path'],
        fields: { backend_type: ['File', 'Uffd'], backend_path: 'string' },
      },
      resume_vm: 'boolean',
    },
  },
}

/** Cloud Hypervisor's OpenAPI document, info.version 0.3.0; undefined: it has no body. */
const CLOUD_HYPERVISOR: Readonly<Record<string, Body | undefined>> = {
  'PUT /api/v1/vm.pause': undefined,
  'PUT /api/v1/vm.resume': undefined,
  'PUT /api/v1/vm.snapshot': { required: [], fields: { destination_url: 'string' } },
}
/** Its RestoreConfig and MemoryRestoreMode; a command line says modes in small letters. */
const RESTORE = { fields: ['source_url', 'prefault', 'memory_restore_mode', 'resume'], modes: ['Copy', 'OnDemand'] } as const
const DISK = ['path', 'readonly', 'serial', 'image_type'] as const

function assertFits(value: unknown, field: Field | Body | undefined, where: string): void {
  assert.ok(field !== undefined, `${where} is not known`)
  if (typeof field === 'string') assert.equal(typeof value, field, where)
  else if ('fields' in field) assertBody(value, field, where)
  else assert.ok((field as readonly unknown[]).includes(value), `${where} is ${String(value)}`)
}

function assertBody(value: unknown, { required, fields }: Body, where: string): void {
  for (const name of required) assert.ok(name in (value as object), `${where} lacks ${name}`)
  for (const [name, one] of Object.entries(value as object)) assertFits(one, fields[name], `${where}, ${name}`)
}

function assertPublished({ method, path, body }: VmmRequest, known: Readonly<Record<string, Body | undefined>>): void {
  const name = `${method} ${path.replace(/^\/drives\/\w+$/, '/drives/{drive_id}')}`
  assert.ok(name in known, `${name} is not known`)
  const shape = known[name]
  if (shape === undefined) assert.equal(body, undefined, name)
  else assertBody(body, shape, name)
}

const machine = { memoryMib: 512, disks: disksOver('/images/root', 'overlay') }
const requestsOf = (vmm: BareVmm, way: string): VmmRequest[] => [
  ...[...vmm.boot(machine).requests, ...vmm.wake('/saved', way).requests],
  ...[vmm.pause, vmm.resume, vmm.save('/saved')],
]
const bodyOf = (requests: readonly VmmRequest[], where: string): Readonly<Record<string, unknown>> =>
  requests.find(({ path }) => path === where)?.body as Readonly<Record<string, unknown>>
/** `--name value value…`. */
const valuesOf = (args: readonly string[], name: string): string[] => {
  const rest = args.slice(args.indexOf(name) + 1)
  const next = rest.findIndex((word) => word.startsWith('--'))
  return next < 0 ? rest : rest.slice(0, next)
}
const wordsOf = (list = ''): Record<string, string> => Object.fromEntries(list.split(',').map((word) => word.split(/=(.*)/s).slice(0, 2)))

test('Firecracker is asked for what its document has, whole before it starts', () => {
  for (const request of requestsOf(BARE_FIRECRACKER, 'File')) assertPublished(request, FIRECRACKER)
  const drives = ['/drives/rootfs', '/drives/overlay', '/drives/modules']
  const paths = BARE_FIRECRACKER.boot(machine).requests.map(({ path }) => path)
  assert.deepEqual(paths, ['/machine-config', '/boot-source', ...drives, '/vsock', '/actions'])
})

test('the kernel of Firecracker’s guest is told the order of the disks that it has', () => {
  const { boot_args: told } = bodyOf(BARE_FIRECRACKER.boot(machine).requests, '/boot-source')
  assert.match(String(told), / dormouse\.disks=rootfs,overlay,modules$/)
})

test('Cloud Hypervisor is asked for what its document has, in its modes of restore', () => {
  for (const mode of RESTORE.modes) {
    const way = mode.toLowerCase()
    for (const request of requestsOf(BARE_CLOUD_HYPERVISOR, way)) assertPublished(request, CLOUD_HYPERVISOR)
    const words = wordsOf(valuesOf(BARE_CLOUD_HYPERVISOR.wake('/saved', way).args, '--restore')[0])
    assert.ok(Object.keys(words).every((name) => (RESTORE.fields as readonly string[]).includes(name)))
    assert.deepEqual(words, { source_url: 'file:///saved', memory_restore_mode: way, resume: 'true' })
  }
  const disks = valuesOf(BARE_CLOUD_HYPERVISOR.boot(machine).args, '--disk').map(wordsOf)
  assert.deepEqual(
    disks.map(({ serial, readonly }) => [serial, readonly]),
    [
      ['rootfs', 'on'],
      ['overlay', 'off'],
      ['modules', 'on'],
    ],
  )
  for (const disk of disks) assert.deepEqual(Object.keys(disk), DISK)
})

test('whoever goes on elsewhere from what was saved has its own disk and sockets: they are named from where it runs', () => {
  assert.equal(bodyOf(BARE_FIRECRACKER.boot(machine).requests, '/drives/overlay').path_on_host, 'overlay')
  const { args } = BARE_CLOUD_HYPERVISOR.boot(machine)
  assert.equal(wordsOf(valuesOf(args, '--disk')[1]).path, 'overlay')
  assert.doesNotMatch([...valuesOf(args, '--vsock'), ...valuesOf(args, '--api-socket')].join(), /\//)
})
