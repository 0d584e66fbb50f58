/**
 * How an instance comes to be on record: everything that may be in its way is looked for first, so that what cannot be leaves nothing.
 *
 *     request ─► checked ─► image ─► ports, volumes, disk looked at ─► judged and inserted in one turn
 */
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Config } from '../config/config.ts'
import type { Devices, PlannedDevices } from '../devices/devices.ts'
import type { Disks } from '../disks/disks.ts'
import { nameLayer } from '../disks/layer.ts'
import { makeAuthority } from '../egress/certificates.ts'
import { hostsOf } from '../egress/credentials.ts'
import type { Events } from '../events/events.ts'
import type { HostFacts } from '../host/host-facts.ts'
import type { Hypervisor, HypervisorName, PortForward } from '../hypervisors/hypervisor.ts'
import type { Images, ReadyImage } from '../images/images.ts'
import { formatPlatform, parsePlatform } from '../images/platform.ts'
import { createId } from '../lib/create-id.ts'
import type { Logger } from '../log.ts'
import { macOf, type Network } from '../network/network.ts'
import type { Database } from '../store/database.ts'
import type { InstanceEgress } from '../store/instance-record.ts'
import type { InstanceRows } from '../store/instances.ts'
import { followAttachments, type Volumes } from '../volumes/volumes.ts'
import { type Demand, demandOf, NOTHING } from './admission.ts'
import {
  assertDevices,
  assertDiskRate,
  assertFreshBoot,
  assertHotplug,
  assertNetworked,
  assertVcpus,
  readerBytes,
} from './driver-limits.ts'
import { forkOf } from './fork-of.ts'
import type { HostRoom } from './host-room.ts'
import type { CreateInstance, ForkInstance, Instance, InstanceId } from './instance.ts'
import { eventDataOf } from './instance-work.ts'
import {
  assertAllowedAs,
  assertCheckable,
  assertNoNetwork,
  bandwidthOf,
  checkCommand,
  checkEnv,
  checkName,
  checkSizes,
  DEFAULT_SIZES,
  limitsOf,
  type Sizes,
} from './limits.ts'
import { type PlannedMount, planMounts, prepareMounts, roomOf } from './mounts.ts'
import type { TargetState } from './operations/fork.ts'
import type { PublishedPorts } from './published-ports.ts'

export interface NewcomersUses {
  readonly db: Database
  readonly rows: InstanceRows
  readonly events: Events
  readonly images: Pick<Images, 'byDigest' | 'readyImage' | 'assertThere' | 'pull' | 'whenReady' | 'hold'>
  readonly disks: Disks
  readonly volumes: Volumes
  readonly devices: Devices
  readonly network: Pick<Network, 'lease' | 'kind'>
  readonly config: Pick<Config, 'limits' | 'instances' | 'hypervisor'>
  readonly settings: { readonly freshBoot: boolean }
  readonly host: Pick<HostFacts, 'isRoot' | 'architecture'>
  readonly room: HostRoom
  readonly ports: PublishedPorts
  readonly log: Logger
  hypervisorOf(name: HypervisorName): Hypervisor
  /** Throws `shutting_down` when it is too late for newcomers. */
  assertOpen(): void
}

const IMAGE_WAIT_MS = 5000
/** What a driver needs of the host is found out once, with a boot where it has to be. */
export const PROBE_LIMIT_MS = 120_000

/** A create request once it is checked and its defaults are filled in. */
interface Asked extends Pick<Instance, 'vcpus' | 'memoryBytes' | 'hotplugBytes' | 'diskIoBps'> {
  readonly sizes: Sizes
  readonly hypervisor: HypervisorName
  readonly platform: string
  readonly mounts: readonly PlannedMount[]
}

export class Newcomers {
  readonly #uses: NewcomersUses

  constructor(uses: NewcomersUses) {
    this.#uses = uses
  }

  /** The row of an instance that is yet to be made. */
  async make(request: CreateInstance): Promise<Instance> {
    const { rows, images, disks, volumes, room } = this.#uses
    const asked = this.#checkCreate(request)
    const probe = { signal: AbortSignal.timeout(PROBE_LIMIT_MS), log: this.#uses.log }
    await this.#uses.hypervisorOf(asked.hypervisor).assertAvailable?.(probe)
    if (rows.findByName(request.name)) throw nameConflict(request.name)
    const demand = {
      ...demandOf(asked),
      diskBytes: asked.sizes.overlayBytes + roomOf(asked.mounts, this.#uses.hypervisorOf(asked.hypervisor)),
    }
    const devices = await this.#planDevices(request, asked.hypervisor)
    devices.assertFree()
    const image = images.readyImage(request.image, request.platform) ?? (await this.#pullFor(request, demand))
    // Until its row says so itself.
    using _image = images.hold(image.digest)
    assertPlatform(request.image, image.platform, asked.platform)
    using chosen = await this.#uses.ports.choose(request.network?.ports ?? [])
    await using mounts = await prepareMounts(asked.mounts, { volumes, release: (layers) => disks.release(layers) })
    const disk = await room.look()
    // From here to the row nothing awaits: who comes first has the name, the ports and the room.
    this.#uses.assertOpen()
    room.admit(request.name, demand, disk)
    room.admitNetwork(request.name, request.network ?? {})
    return this.#insertAsked(request, asked, image, chosen.ports, mounts, devices)
  }

  /** The row of an instance that is to go on from where another is, or was. */
  async makeFork(source: Instance, request: ForkInstance, target: TargetState): Promise<Instance> {
    checkName(request.name)
    assertAllowedAs(request.name, source, this.#uses.config.limits)
    if (target === 'Standby' && source.gpu !== undefined) {
      throw new AppError('invalid_state', `A fork of ${source.name} has a part of a GPU as well, and cannot be put into standby with it`, {
        hint: 'Fork it to Running or Stopped',
      })
    }
    if (!source.network.enabled) assertNoNetwork(request)
    const bandwidth = bandwidthOf(request, source.network)
    // What has no memory to go on from boots first, also on its way to Standby.
    const runs = target === 'Running' || (target === 'Standby' && source.state === 'Stopped')
    const demand = runs ? demandOf(source) : NOTHING
    const { db, rows, config, host, events, room } = this.#uses
    using chosen = await this.#uses.ports.choose(request.ports ?? [])
    const { ports } = chosen
    const disk = await room.look()
    this.#uses.assertOpen()
    // Volumes that it writes to become two.
    const driver = this.#uses.hypervisorOf(source.hypervisor)
    const volumeBytes = sum(source.volumes.map((volume) => (volume.readOnly ? readerBytes(driver, volume) : volume.bytes)))
    room.assertVolumes(request.name, sum(source.volumes.filter(({ readOnly }) => !readOnly).map(({ bytes }) => bytes)))
    room.admit(request.name, { ...demand, diskBytes: source.overlayBytes + volumeBytes }, disk)
    if (runs) room.admitNetwork(request.name, bandwidth)
    const id = createId() as InstanceId
    const nowMs = Date.now()
    return db.transaction(() => {
      if (rows.findByName(request.name)) throw nameConflict(request.name)
      this.#uses.ports.assertFree(ports)
      const uid = this.#takeUid(config, host.isRoot)
      const instance: Instance = {
        ...forkOf(source, { id, name: request.name, network: { ports, ...bandwidth }, nowMs }),
        ...(uid === undefined ? {} : { uid }),
      }
      const addressed = this.#insert(instance)
      events.record({ kind: 'instance.created', subject: id, data: eventDataOf(addressed) })
      return addressed
    })
  }

  /** With the address that is its own until the row goes. */
  #insert(instance: Instance): Instance {
    const { rows, network } = this.#uses
    // A lease goes with its row.
    rows.insert(instance)
    if (!instance.network.enabled) return instance
    const addressed = { ...instance, network: { ...instance.network, ip: network.lease(instance.id) } }
    rows.update(addressed)
    return addressed
  }

  #checkCreate(request: CreateInstance): Asked {
    checkName(request.name)
    checkCommand(request)
    checkEnv(request.env ?? {}, { hasEgress: request.egress !== undefined })
    const sizes = {
      vcpus: request.vcpus ?? DEFAULT_SIZES.vcpus,
      memoryBytes: request.memoryBytes ?? DEFAULT_SIZES.memoryBytes,
      overlayBytes: request.overlayBytes ?? DEFAULT_SIZES.overlayBytes,
    }
    const { config, volumes, host } = this.#uses
    const limits = limitsOf(request.name, config.limits)
    checkSizes(sizes, limits)
    const hypervisor = request.hypervisor ?? config.hypervisor
    const driver = this.#uses.hypervisorOf(hypervisor)
    const mounts = planMounts(request.volumes ?? [], [], { volumes, slots: driver.volumeSlots })
    const network = request.network ?? {}
    if (network.enabled === false) assertNoNetwork(network)
    else assertNetworked(driver, this.#uses.network)
    bandwidthOf(network)
    const { healthCheck, skipGuestAgent = false } = request
    if (healthCheck !== undefined) assertCheckable(healthCheck, { hasNetwork: network.enabled !== false, skipGuestAgent })
    assertVcpus(driver, sizes.vcpus)
    const { hotplugBytes = 0 } = request
    assertHotplug(driver, hotplugBytes, sizes.memoryBytes, limits)
    const platform = `linux/${host.architecture === 'aarch64' ? 'arm64' : 'amd64'}`
    if (request.platform !== undefined) assertPlatform(request.image, formatPlatform(parsePlatform(request.platform)), platform)
    if (request.diskIoBps !== undefined) assertDiskRate(driver, request.diskIoBps)
    if (request.freshBoot === true || this.#uses.settings.freshBoot) assertFreshBoot(driver)
    return { ...sizes, hotplugBytes, ...present('diskIoBps', request.diskIoBps), sizes, hypervisor, platform, mounts }
  }

  async #pullFor(request: CreateInstance, demand: Demand): Promise<ReadyImage> {
    const { images, room } = this.#uses
    const { image: name, platform } = request
    // Nothing is pulled for what cannot run.
    const wanted = { name, ...present('platform', platform) }
    try {
      room.admit(request.name, demand, await room.look())
      room.admitNetwork(request.name, request.network ?? {})
    } catch (error) {
      // An image that there is not is so on any host, and more room would not help.
      await images.assertThere(wanted)
      throw error
    }
    await images.pull(wanted)
    try {
      return await images.whenReady(name, { signal: AbortSignal.timeout(IMAGE_WAIT_MS) })
    } catch (cause) {
      const code = errorCodeOf(cause)
      if (code !== undefined && code !== 'timed_out' && code !== 'image_not_ready') throw cause
      throw new AppError('image_not_ready', `The image ${name} is still being pulled`, {
        hint: `Follow it with: dormouse image pull ${name}; then ask again`,
        retryAfterSeconds: 2,
        cause,
      })
    }
  }

  /** What is in the way of its devices is told before anything is made. */
  async #planDevices({ devices, gpuProfile }: CreateInstance, name: HypervisorName): Promise<PlannedDevices> {
    if ((devices?.length ?? 0) > 0 || gpuProfile !== undefined) assertDevices(this.#uses.hypervisorOf(name))
    return this.#uses.devices.plan({ ...present('devices', devices), ...present('profile', gpuProfile) })
  }

  #insertAsked(
    request: CreateInstance,
    asked: Asked,
    image: ReadyImage,
    ports: readonly PortForward[],
    mounts: Awaited<ReturnType<typeof prepareMounts>>,
    devices: PlannedDevices,
  ): Instance {
    const { db, rows, images, config, host, events, volumes } = this.#uses
    const id = createId() as InstanceId
    const nowMs = Date.now()
    return db.transaction(() => {
      if (rows.findByName(request.name)) throw nameConflict(request.name)
      if (!images.byDigest(image.digest)) throw new AppError('image_not_ready', `The image ${request.image} was deleted meanwhile`)
      this.#uses.ports.assertFree(ports)
      const uid = this.#takeUid(config, host.isRoot)
      const isNetworked = request.network?.enabled !== false
      const instance: Instance = {
        id,
        name: request.name,
        createdAtMs: nowMs,
        image: request.image,
        imageDigest: image.digest,
        platform: asked.platform,
        hypervisor: asked.hypervisor,
        ...asked.sizes,
        hotplugBytes: asked.hotplugBytes,
        ...present('diskIoBps', asked.diskIoBps),
        network: {
          enabled: isNetworked,
          ports,
          ...bandwidthOf(request.network ?? {}),
          ...(isNetworked ? { mac: macOf(id) } : {}),
        },
        ...present('egress', request.egress && egressOf(request.egress, request.name, nowMs)),
        env: request.env ?? {},
        tags: request.tags ?? {},
        skipGuestAgent: request.skipGuestAgent ?? false,
        skipKernelHeaders: request.skipKernelHeaders ?? false,
        state: 'Created',
        operation: 'create',
        disk: [nameLayer('raw')],
        volumes: mounts.attachments,
        ...(devices.devices.length > 0 ? { devices: devices.devices } : {}),
        ...(request.gpuProfile === undefined ? {} : { gpu: { profile: request.gpuProfile } }),
        phases: { current: 'Created', sinceMs: nowMs, durations: {} },
        ...(request.entrypoint?.length ? { entrypoint: request.entrypoint } : {}),
        ...(request.cmd?.length ? { cmd: request.cmd } : {}),
        ...(request.freshBoot ? { freshBoot: true } : {}),
        ...(request.snapshotPolicy === undefined ? {} : { snapshotPolicy: request.snapshotPolicy }),
        ...(request.autoStandby === undefined ? {} : { autoStandby: request.autoStandby }),
        ...(request.expiresAtMs === undefined ? {} : { expiresAtMs: request.expiresAtMs }),
        ...present('healthCheck', request.healthCheck),
        ...present('restartPolicy', request.restartPolicy),
        ...(uid === undefined ? {} : { uid }),
      }
      mounts.assertUnchanged()
      devices.assertFree()
      followAttachments({ rows: volumes.rows, events }, instance, [], instance.volumes)
      const addressed = this.#insert(instance)
      events.record({ kind: 'instance.created', subject: id, data: eventDataOf(addressed) })
      return addressed
    })
  }

  #takeUid(config: NewcomersUses['config'], isRoot: boolean): number | undefined {
    if (!isRoot) return undefined
    const uid = this.#uses.rows.findFreeUid(config.instances.uidBase, config.instances.uidCount)
    if (uid === undefined) throw new AppError('insufficient_resources', 'Every user id of the configured range is taken')
    return uid
  }
}

/** With an authority that is its own. */
function egressOf({ mode, credentials }: NonNullable<CreateInstance['egress']>, name: string, nowMs: number): InstanceEgress {
  return { mode, credentials, authority: makeAuthority(`dormouse ${name}`, hostsOf(credentials), nowMs) }
}

function assertPlatform(image: string, platform: string, own: string): void {
  if (platform === own) return
  throw new AppError('platform_not_available', `The image ${image} for ${platform} cannot run on this host`, {
    hint: `This host runs ${own}: pull the image for it, or leave out the platform`,
  })
}

const present = <K extends string, V>(key: K, value: V | undefined): { [P in K]?: V } =>
  (value === undefined ? {} : { [key]: value }) as { [P in K]?: V }

const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0)

const nameConflict = (name: string): AppError =>
  new AppError('name_conflict', `The name ${name} is taken by another instance`, { hint: `See it with: dormouse inspect ${name}` })
