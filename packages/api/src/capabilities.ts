/** What this server can do, and why it cannot do more. */
import { type Static, Type } from 'typebox'

export const RUNTIME_FEATURES = [
  'snapshots',
  'standby',
  'fork',
  'pause',
  'hotplug-memory',
  'hotplug-disk',
  'balloon-control',
  'vsock',
  'gpu-passthrough',
  'disk-io-limit',
  'disk-resize',
] as const

export const Runtime = Type.Object(
  {
    name: Type.String(),
    available: Type.Boolean(),
    features: Type.Array(Type.String()),
    version: Type.Optional(Type.String()),
    versions: Type.Optional(
      Type.Array(Type.String(), { description: 'Releases that it works with, newest first; absent where the distribution brings it' }),
    ),
    acceleration: Type.Optional(Type.Enum(['kvm', 'tcg'], { description: 'kvm: by the processor; tcg: emulated, slower' })),
    reason: Type.Optional(Type.String({ description: 'Why it is not available, or why it runs without KVM' })),
    waiting: Type.Optional(Type.Integer({ minimum: 0, description: 'VMs that wait for the next creates and starts' })),
  },
  { $id: 'CapabilitiesRuntime' },
)
export type Runtime = Static<typeof Runtime>

export const Capabilities = Type.Object(
  {
    server: Type.Object({ version: Type.String(), api_version: Type.String() }, { $id: 'CapabilitiesServer' }),
    host: Type.Object(
      {
        os: Type.String(),
        arch: Type.String(),
        cgroups: Type.Optional(
          Type.Object(
            {
              version: Type.Enum(['v1', 'v2', 'none']),
              controllers: Type.Array(Type.Enum(['cpu', 'memory', 'pids'])),
              reason: Type.Optional(Type.String({ description: 'Why a controller is missing' })),
            },
            { description: 'What limits the processes of each VM' },
          ),
        ),
      },
      { $id: 'CapabilitiesHost' },
    ),
    default_runtime: Type.Object({ name: Type.String(), available: Type.Boolean() }, { $id: 'CapabilitiesDefaultRuntime' }),
    runtimes: Type.Array(Runtime, { description: 'By name' }),
    network: Type.Object(
      {
        model: Type.Enum(['bridge', 'nat']),
        guest_to_guest: Type.Boolean(),
        gateway: Type.Optional(Type.String()),
        subnet: Type.Optional(Type.String()),
      },
      { $id: 'CapabilitiesNetwork' },
    ),
    images: Type.Object({ platforms: Type.Array(Type.String()), default_platform: Type.String() }, { $id: 'CapabilitiesImages' }),
    features: Type.Array(Type.String()),
  },
  { $id: 'Capabilities' },
)
export type Capabilities = Static<typeof Capabilities>

export const Health = Type.Object({ status: Type.Literal('ok') }, { $id: 'Health' })
