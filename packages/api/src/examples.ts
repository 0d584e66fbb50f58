/**
 * One example for each route, in an order in which they work one after the other. docs/api.md shows them; a test sends each to a whole
 * daemon, on made-up VMs, and compares what comes back with what the page shows (docs/api-examples.json).
 *
 * `as` keeps an answer under a name: `$web.id` in a later example is what it held. A route without an example fails a test.
 */
import type { RouteId } from './endpoints.ts'

export interface Example {
  readonly route: RouteId
  readonly params?: Readonly<Record<string, string>>
  readonly query?: Readonly<Record<string, unknown>>
  readonly body?: unknown
  /** A raw body; what is in it stands in the runner under this name. */
  readonly upload?: 'oci-archive' | 'volume-archive' | 'build-source'
  /** Text frames to send over the WebSocket, or bytes, then what ends it. */
  readonly frames?: readonly (string | object)[]
  /** Messages of the event stream to wait for; all of them when left out. */
  readonly messages?: number
  readonly as?: string
  /** What comes first: an image becomes ready, a workload writes. */
  readonly after?: { readonly image: string } | { readonly instance: string; readonly writes: string }
  /** How far it is when it is answered is up to chance: no field is looked for. */
  readonly isByChance?: true
  /** Prepares for another and is not shown. */
  readonly isHidden?: true
}

const IMAGE = 'registry.example/hello:1'
const web = { id: 'web' }

export const EXAMPLES: readonly Example[] = [
  // the server
  { route: 'getHealth' },
  { route: 'getCapabilities' },

  // images
  { route: 'pullImage', body: { name: IMAGE, tags: { team: 'shop' } }, isByChance: true },
  { route: 'getImageProgress', params: { name: IMAGE }, isByChance: true },
  { route: 'getImage', params: { name: IMAGE }, after: { image: IMAGE } },
  { route: 'tagImage', params: { name: IMAGE }, body: { target: 'hello:stable' } },
  { route: 'importImage', query: { name: 'mine:1' }, upload: 'oci-archive' },
  { route: 'listImages', query: { tags: { team: 'shop' }, limit: 10 }, after: { image: 'mine:1' } },
  { route: 'deleteImage', params: { name: 'docker.io/library/hello:stable' } },
  { route: 'createPush', body: { image: IMAGE, target: 'registry.example/shop/hello:1' }, as: 'push', isByChance: true },
  { route: 'listPushes', query: { limit: 10 }, isByChance: true },
  { route: 'getPush', params: { id: '$push.id' }, isByChance: true },

  // devices
  { route: 'listAvailableDevices' },
  { route: 'createDevice', body: { pci_address: '0000:65:00.0', name: 'gpu0', tags: { team: 'shop' } } },
  { route: 'listDevices', query: { tags: { team: 'shop' } } },
  { route: 'getDevice', params: { id: 'gpu0' } },
  { route: 'deleteDevice', params: { id: 'gpu0' } },

  // instances
  {
    route: 'createInstance',
    query: { wait: 'running' },
    body: {
      name: 'web',
      image: IMAGE,
      size: '512MB',
      vcpus: 1,
      env: { GREETING: 'hello' },
      tags: { team: 'shop' },
      network: { ports: [{ host_port: 0, guest_port: 80 }] },
    },
    as: 'web',
  },
  { route: 'listInstances', query: { state: 'Running', tags: { team: 'shop' } } },
  { route: 'getInstance', params: web },
  {
    route: 'updateInstance',
    params: web,
    body: { tags: { team: 'shop', tier: 'front' }, ttl: '24h', auto_standby: { enabled: true, idle_timeout: '10m' } },
  },
  { route: 'getAutoStandbyStatus', params: web, isByChance: true },
  { route: 'holdAutoStandby', params: web, isByChance: true },
  { route: 'waitForInstance', params: web, query: { state: 'Running', timeout: '30s' } },
  { route: 'getInstanceLogs', params: web, query: { tail: 2 }, after: { instance: 'web', writes: 'starting\nlistening on :80\n' } },
  { route: 'statInstancePath', params: web, query: { path: '/' } },
  { route: 'getInstanceStats', params: web },
  { route: 'execInstance', params: web, frames: [{ command: ['echo', 'hello'], tty: false }] },
  {
    route: 'copyInstanceFiles',
    params: web,
    frames: [{ direction: 'to', guest_path: '/tmp/note', mode: 0o644 }, 'hello', { type: 'end' }],
  },

  // volumes
  { route: 'createVolume', body: { name: 'data', size_gb: 1, tags: { team: 'shop' } }, as: 'data' },
  { route: 'createVolumeFromArchive', query: { name: 'seed', size_gb: 1 }, upload: 'volume-archive', as: 'seed' },
  { route: 'listVolumes', query: { limit: 10 } },
  { route: 'getVolume', params: { id: 'data' } },
  { route: 'attachVolume', params: { id: '$web.id', volumeId: '$data.id' }, body: { mount_path: '/srv/data' } },
  { route: 'detachVolume', params: { id: '$web.id', volumeId: '$data.id' } },
  { route: 'updateVolume', params: { id: 'data' }, body: { size_gb: 2 } },
  { route: 'deleteVolume', params: { id: '$seed.id' } },

  // sleep, snapshots, forks
  {
    route: 'setSnapshotSchedule',
    params: web,
    body: { interval: '1h', retention: { max_count: 24, max_age: '168h' }, name_prefix: 'hourly' },
  },
  { route: 'getSnapshotSchedule', params: web },
  { route: 'deleteSnapshotSchedule', params: web },
  { route: 'createSnapshot', params: { id: '$web.id' }, body: { kind: 'Standby', name: 'before-upgrade' }, as: 'snapshot' },
  { route: 'listSnapshots', query: { source_instance_id: '$web.id' } },
  { route: 'getSnapshot', params: { snapshotId: '$snapshot.id' } },
  { route: 'forkInstance', params: web, query: { wait: 'running' }, body: { name: 'web-2', from_running: true } },
  { route: 'forkSnapshot', params: { snapshotId: '$snapshot.id' }, body: { name: 'web-3', target_state: 'Standby' } },
  { route: 'standbyInstance', params: web, body: {} },
  { route: 'restoreInstance', params: web, query: { wait: 'running' } },
  { route: 'stopInstance', params: web, body: { timeout: '10s' } },
  {
    route: 'restoreSnapshot',
    params: { id: '$web.id', snapshotId: '$snapshot.id' },
    body: { target_state: 'Standby' },
  },
  { route: 'stopInstance', params: web, isHidden: true },
  { route: 'startInstance', params: web, query: { wait: 'running' }, body: {} },
  { route: 'deleteInstance', params: { id: 'web-2' }, query: { graceful_shutdown: false } },
  { route: 'deleteInstance', params: { id: 'web-3' }, isHidden: true },
  { route: 'deleteSnapshot', params: { snapshotId: '$snapshot.id' } },
  { route: 'pruneImages', body: {} },

  // the host
  { route: 'getResources' },
  { route: 'getDiskUsage' },
  { route: 'prune', body: { dry_run: true } },
  { route: 'reclaimMemory', body: { reclaim_bytes: 268_435_456, dry_run: true } },
  { route: 'followEvents', query: { after: 0, subject: '$web.id' }, messages: 2 },
  { route: 'getMetrics' },

  // who may
  { route: 'createToken', body: { subject: 'ci', scopes: ['instance:read', 'image:read'], ttl: '8h' }, as: 'token' },
  { route: 'listTokens' },
  { route: 'revokeToken', params: { id: '$token.id' } },
  { route: 'revokeTokens', body: { subject: 'ci' } },
  { route: 'createTicket', body: { path: '/instances/web/logs' } },
  { route: 'listAudit', query: { target: 'web', limit: 2 } },

  // what is not built yet, and says so
  {
    route: 'createIngress',
    body: { name: 'shop', rules: [{ match: { hostname: 'shop.example' }, target: { instance: 'web', port: 80 } }] },
  },
  { route: 'listIngresses' },
  { route: 'getIngress', params: { id: 'shop' } },
  { route: 'deleteIngress', params: { id: 'shop' } },
  { route: 'createBuilder', body: { name: 'shop', disk_size_gb: 20 } },
  { route: 'listBuilders' },
  { route: 'getBuilder', params: { id: 'shop' } },
  { route: 'pruneBuilder', params: { id: 'shop' } },
  { route: 'deleteBuilder', params: { id: 'shop' } },
  { route: 'createBuild', upload: 'build-source' },
  { route: 'listBuilds' },
  { route: 'getBuild', params: { id: 'hello' } },
  { route: 'getBuildEvents', params: { id: 'hello' }, query: { follow: true } },
  { route: 'cancelBuild', params: { id: 'hello' } },
]
