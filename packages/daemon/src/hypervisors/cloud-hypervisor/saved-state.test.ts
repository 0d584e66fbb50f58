import assert from 'node:assert/strict'
import { test } from 'node:test'
import { slotsOf } from './machine.ts'
import { formatSaved, parseSaved, rewire, unmetDevices, withFreshDevices, withMemory } from './saved-state.ts'

const GIB = 2 ** 30
/** As Cloud Hypervisor writes them, shortened: what a node says of itself is JSON in a text, with numbers of 64 bits. */
const memory = `{"memory_ranges":{"data":[{"gpa":0,"length":${3 * GIB}}]},"guest_ram_mappings":[{"slot":0,"gpa":0,"size":${3 * GIB},"zone_id":"ram","virtio_mem":false,"file_offset":0},{"slot":1,"gpa":${4 * GIB},"size":${GIB},"zone_id":"ram","virtio_mem":false,"file_offset":${3 * GIB}}],"end":18446744073709551615}`
const disk = (id: string) => ({ id, pci_segment: 0, path: '/proc/self/fd/21', readonly: true, serial: id, image_type: 'Raw' })
const named = (serial: string) => ({ ...disk(serial), id: `${serial}-1f` })
const saved = () =>
  parseSaved(
    JSON.stringify({
      config: {
        cpus: { boot_vcpus: 1 },
        memory: { size: 0, zones: [{ id: 'ram', size: 4 * GIB, file: '/old', shared: true }] },
        payload: { kernel: '/old', cmdline: 'quiet' },
        rate_limit_groups: [{ id: 'disks' }],
        disks: [disk('empty-0'), { ...disk('empty-1'), rate_limit_group: 'disks' }, disk('empty-2')],
        net: [{ id: 'nic', mac: '02:00:00:00:00:00', fds: [-1] }],
        vsock: { cid: 3, socket: 'vsock.sock' },
      },
      state: {
        snapshots: {
          'memory-manager': { snapshots: {}, snapshot_data: { state: memory } },
          'device-manager': {
            snapshots: Object.fromEntries(
              ['empty-0', '_virtio-pci-empty-0', 'empty-1', 'empty-2', 'nic', 'vsock'].map((id) => [id, { snapshots: {} }]),
            ),
          },
        },
      },
    }),
  )
const memoryOf = (state: unknown): string =>
  (state as { snapshots: Record<string, { snapshot_data: { state: string } }> }).snapshots['memory-manager']?.snapshot_data.state ?? ''

test('pages of the memory get the addresses that its guest has them at, also beyond the hole below 4 GiB, and nothing else changes', () => {
  const { config, state } = saved()
  const first = (3 * GIB) / 4096 - 1
  const changed = memoryOf(
    withMemory(state, [
      { first: 1, count: 2 },
      { first, count: 3 },
    ]),
  )
  const ranges = [
    { gpa: 4096, length: 8192 },
    { gpa: 3 * GIB - 4096, length: 4096 },
    { gpa: 4 * GIB, length: 8192 },
  ]
  assert.equal(changed, memory.replace(/"data":\[.*?\]/, `"data":${JSON.stringify(ranges)}`))
  assert.match(formatSaved({ config, state }), /18446744073709551615/)
  assert.match(memoryOf(withMemory(state, [])), /"memory_ranges":\{"data":\[\]\}/)
  assert.throws(() => withMemory(state, [{ first: (4 * GIB) / 4096, count: 1 }]), { code: 'snapshot_unusable' })
})

test('a machine is given the files, the card and the rate of another VM; its devices keep their names', () => {
  const slots = slotsOf([
    { role: 'rootfs', path: '/r', format: 'raw', readOnly: true },
    { role: 'overlay', path: '/o', format: 'raw', readOnly: false },
  ])
  const wired = rewire(saved().config, { slots, sharesMemory: false, mac: '02:00:00:00:00:07', diskIoBps: 1000 })
  assert.deepEqual(wired.memory, { size: 0, zones: [{ id: 'ram', size: 4 * GIB, file: '/proc/self/fd/17', shared: false }] })
  assert.deepEqual(wired.payload, { kernel: 'kernel', cmdline: 'quiet' })
  assert.deepEqual(wired.disks, [
    { ...disk('empty-0'), path: '/proc/self/fd/30', serial: 'rootfs', rate_limit_group: 'disks' },
    { ...disk('empty-1'), path: '/proc/self/fd/31', serial: 'overlay', readonly: false, rate_limit_group: 'disks' },
    disk('empty-2'),
  ])
  assert.deepEqual(wired.net, [{ id: 'nic', mac: '02:00:00:00:00:07', fds: [-1] }])
  assert.deepEqual(wired.rate_limit_groups, [{ id: 'disks', rate_limiter_config: { bandwidth: { size: 4000, refill_time: 4000 } } }])
  assert.equal('rate_limit_groups' in rewire(saved().config, { slots, sharesMemory: false }), false)
})

test('volumes that were plugged are there again, by their names, and no others', () => {
  const { config } = saved()
  const plugged = { ...config, disks: [...(config.disks as object[]), disk('volume-2'), named('volume-0')] }
  const volumes = (['volume-0', 'volume-2'] as const).map((id) => ({ id, path: `/proc/dormouse/${id}`, readOnly: false }))
  const [, , , ...rest] = rewire(plugged, { slots: slotsOf([]), volumes, sharesMemory: false }).disks as unknown[]
  assert.deepEqual(
    rest,
    [named('volume-0'), disk('volume-2')].map((one, index) => ({ ...one, path: volumes[index]?.path, readonly: false })),
  )
  for (const others of [
    [],
    volumes.slice(1),
    [...volumes.slice(1), { ...volumes[1], id: 'volume-1' as const, path: '/x', readOnly: false }],
  ])
    assert.throws(() => rewire(plugged, { slots: slotsOf([]), volumes: others, sharesMemory: false }), { code: 'snapshot_unusable' })
})

test('devices that no driver has met begin anew, in their places', () => {
  const { config, state } = saved()
  const fresh = withFreshDevices(state, unmetDevices(config)) as { snapshots: Record<string, { snapshots: Record<string, unknown> }> }
  assert.deepEqual(Object.keys(fresh.snapshots['device-manager']?.snapshots ?? {}), ['_virtio-pci-empty-0', 'vsock'])
  assert.throws(() => withFreshDevices(state, ['another']), { code: 'snapshot_unusable' })
})

test('what is damaged, or of another form, is said to be so', () => {
  for (const text of ['{', '{}', '{"config":1,"state":{}}', '{"config":{},"state":[]}'])
    assert.throws(() => parseSaved(text), { code: 'snapshot_unusable' }, text)
  assert.throws(() => withMemory({ snapshots: { 'memory-manager': { snapshot_data: { state: '{' } } } }, []), { code: 'snapshot_unusable' })
  assert.throws(() => rewire({ memory: { zones: [] } }, { slots: [], sharesMemory: false }), { code: 'snapshot_unusable' })
})
