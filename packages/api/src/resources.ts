/** What the host has, what is given away, what is left. */
import { type Static, Type } from 'typebox'
import { HypervisorKind } from './instances.ts'
import { Duration, nullable } from './names.ts'

export const ResourceStatus = Type.Object(
  {
    type: Type.String(),
    capacity: Type.Number({ description: 'What the host has' }),
    effective_limit: Type.Number({ description: 'What may be given away: capacity times the ratio' }),
    allocated: Type.Number(),
    available: Type.Number(),
    oversub_ratio: Type.Number(),
    source: Type.Optional(Type.String({ description: 'Where the capacity is known from' })),
  },
  { $id: 'ResourceStatus' },
)
export type ResourceStatus = Static<typeof ResourceStatus>

export const ResourceAllocation = Type.Object(
  {
    instance_id: Type.Optional(Type.String()),
    instance_name: Type.Optional(Type.String()),
    cpu: Type.Optional(Type.Integer()),
    memory_bytes: Type.Optional(Type.Integer()),
    disk_bytes: Type.Optional(Type.Integer()),
    network_download_bps: Type.Optional(Type.Integer()),
    network_upload_bps: Type.Optional(Type.Integer()),
    disk_io_bps: Type.Optional(Type.Integer()),
  },
  { $id: 'ResourceAllocation' },
)

export const Resources = Type.Object(
  {
    cpu: ResourceStatus,
    memory: ResourceStatus,
    disk: ResourceStatus,
    network: ResourceStatus,
    disk_io: Type.Optional(ResourceStatus),
    disk_breakdown: Type.Optional(
      Type.Object(
        {
          images_bytes: Type.Optional(Type.Integer({ description: 'Root file systems of images' })),
          oci_cache_bytes: Type.Optional(Type.Integer({ description: 'Compressed layers of images' })),
          volumes_bytes: Type.Optional(Type.Integer({ description: 'At their full size' })),
          overlays_bytes: Type.Optional(Type.Integer({ description: 'At their full size; what several share once' })),
        },
        { description: 'What of the disk is given out; together it is what `disk` has allocated. What is taken is told by `GET /df`' },
      ),
    ),
    gpu: Type.Optional(
      nullable(
        Type.Object({
          mode: Type.Enum(['vgpu', 'passthrough']),
          total_slots: Type.Integer(),
          used_slots: Type.Integer(),
          profiles: Type.Optional(
            Type.Array(Type.Object({ name: Type.String(), framebuffer_mb: Type.Integer(), available: Type.Integer() })),
          ),
          devices: Type.Optional(Type.Array(Type.Object({ name: Type.String(), available: Type.Boolean() }))),
        }),
      ),
    ),
    allocations: Type.Array(ResourceAllocation),
  },
  { $id: 'Resources' },
)
export type Resources = Static<typeof Resources>

export const MemoryReclaimRequest = Type.Object(
  {
    reclaim_bytes: Type.Integer({ minimum: 0, description: '0 ends what an earlier request holds' }),
    hold_for: Type.Optional({ ...Duration, description: 'How long no VM is made to wait again; 5m when left out, at most 1h' }),
    dry_run: Type.Optional(Type.Boolean({ default: false })),
    reason: Type.Optional(Type.String({ maxLength: 256 })),
  },
  { $id: 'MemoryReclaimRequest', additionalProperties: false },
)
export type MemoryReclaimRequest = Static<typeof MemoryReclaimRequest>

export const MemoryReclaimResponse = Type.Object(
  {
    requested_reclaim_bytes: Type.Integer(),
    planned_reclaim_bytes: Type.Integer(),
    applied_reclaim_bytes: Type.Integer(),
    host_available_bytes: Type.Integer(),
    host_pressure_state: Type.Enum(['healthy', 'pressure']),
    hold_until: Type.Optional(Type.String()),
    actions: Type.Array(
      Type.Object({
        instance_id: Type.String(),
        instance_name: Type.String(),
        hypervisor: HypervisorKind,
        assigned_memory_bytes: Type.Integer(),
        protected_floor_bytes: Type.Integer(),
        previous_target_guest_memory_bytes: Type.Integer(),
        planned_target_guest_memory_bytes: Type.Integer(),
        target_guest_memory_bytes: Type.Integer(),
        applied_reclaim_bytes: Type.Integer(),
        status: Type.String({ description: 'planned, reclaimed, protected, skipped or failed' }),
        error: Type.Optional(Type.String()),
      }),
    ),
  },
  { $id: 'MemoryReclaimResponse' },
)
export type MemoryReclaimResponse = Static<typeof MemoryReclaimResponse>
