/** All that an instance writes to: its own disk, and what it has of each volume. */
import type { DiskRole } from '../hypervisors/vm-spec.ts'
import type { Attachment, Instance } from './instance.ts'

export interface InstanceDisk {
  readonly role: DiskRole
  /** Top first. */
  readonly layers: readonly string[]
  readonly bytes: number
}

type WithDisks = Pick<Instance, 'disk' | 'volumes' | 'overlayBytes'>

export const volumeRole = ({ slot }: Pick<Attachment, 'slot'>): DiskRole => `volume-${slot}`

/** Its own first. */
export const disksOf = ({ disk, volumes, overlayBytes }: WithDisks): InstanceDisk[] => [
  { role: 'overlay', layers: disk, bytes: overlayBytes },
  ...volumes.map((attachment) => ({ role: volumeRole(attachment), layers: attachment.disk, bytes: attachment.bytes })),
]

/** Every layer that it stands on. */
export const layersOf = ({ disk, volumes }: Pick<Instance, 'disk' | 'volumes'>): string[] => [
  ...disk,
  ...volumes.flatMap((attachment) => attachment.disk),
]

/** The same disks on other layers; those that `layersFor` says nothing of stay as they are. */
export function withLayers(
  { disk, volumes }: Pick<Instance, 'disk' | 'volumes'>,
  layersFor: (role: DiskRole) => readonly string[] | undefined,
): Pick<Instance, 'disk' | 'volumes'> {
  return {
    disk: layersFor('overlay') ?? disk,
    // The same list when nothing of it changes: whose volumes are the same has attached and detached none.
    volumes: volumes.some((attachment) => layersFor(volumeRole(attachment)) !== undefined)
      ? volumes.map((attachment) => ({ ...attachment, disk: layersFor(volumeRole(attachment)) ?? attachment.disk }))
      : volumes,
  }
}
