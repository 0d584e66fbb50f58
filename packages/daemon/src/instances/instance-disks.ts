/** All that an instance writes to: its own disk, and what it has of each volume. */
import type { DiskRole } from '../hypervisors/vm-spec.ts'
import { layerLimit } from '../volumes/volumes.ts'
import type { Attachment, Instance } from './instance.ts'

export interface InstanceDisk {
  readonly role: DiskRole
  /** Top first. */
  readonly layers: readonly string[]
  readonly bytes: number
  /** What its top layer may take on the host's disk; absent: as much as it is large. */
  readonly limitBytes?: number
}

type WithDisks = Pick<Instance, 'disk' | 'volumes' | 'overlayBytes'>

export const volumeRole = ({ slot }: Pick<Attachment, 'slot'>): DiskRole => `volume-${slot}`

/** Its own first. */
export const disksOf = ({ disk, volumes, overlayBytes }: WithDisks): InstanceDisk[] => [
  { role: 'overlay', layers: disk, bytes: overlayBytes },
  ...volumes.map((attachment) => ({
    role: volumeRole(attachment),
    layers: attachment.disk,
    bytes: attachment.bytes,
    ...limitOf(attachment),
  })),
]

const limitOf = (attachment: Attachment): Pick<InstanceDisk, 'limitBytes'> => {
  const limitBytes = layerLimit(attachment)
  return limitBytes === undefined ? {} : { limitBytes }
}

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
