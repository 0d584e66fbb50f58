import { createHash } from 'node:crypto'
import { guestVariablesOf } from '../egress/credentials.ts'
import type { GuestConfig, WakeRequest } from '../guest/guest-client.ts'
import type { ReadyImage } from '../images/images.ts'
import type { Network } from '../network/network.ts'
import { PROXY_PORT } from '../network/ruleset.ts'
import type { Attachment, Instance } from './instance.ts'
import { volumeRole } from './instance-disks.ts'
import { nicOf } from './vm-spec-of.ts'

export interface GuestConfigInputs {
  readonly image: Pick<ReadyImage, 'config'>
  readonly network: Pick<Network, 'guestNetworkOf' | 'proxyAddress'>
  readonly hasModules: boolean
}

const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const NOT_BY_PROXY = 'localhost,127.0.0.1,::1'
const DEFAULT_STOP_SIGNAL = 'SIGTERM'
// systemd takes SIGTERM for "start anew"; this one means "halt" (systemd(1)).
const SYSTEMD_STOP_SIGNAL = 'SIGRTMIN+3'
const INITS = new Set([
  '/sbin/init',
  '/usr/sbin/init',
  '/lib/systemd/systemd',
  '/usr/lib/systemd/systemd',
  '/bin/systemd',
  '/usr/bin/systemd',
])

/** What the guest is told with "go". Pure, but for entropy and clock, which the guest client adds as it sends. */
export function guestConfigOf(instance: Instance, { image, network, hasModules }: GuestConfigInputs): GuestConfig {
  const { config } = image
  const nic = nicOf(instance)
  const argv = argvOf(instance, config)
  const isInit = INITS.has(argv[0] ?? '')
  return {
    hostname: instance.name,
    machineId: machineIdOf(instance.id),
    workload: {
      kind: isInit ? 'systemd' : 'exec',
      argv,
      env: { PATH: DEFAULT_PATH, ...pairsOf(config.env), ...variablesOf(instance, network.proxyAddress) },
      cwd: config.workingDir || '/',
      user: config.user,
      stopSignal: config.stopSignal || (isInit ? SYSTEMD_STOP_SIGNAL : DEFAULT_STOP_SIGNAL),
    },
    disks: { overlay: true, modules: hasModules, volumes: instance.volumes.map(volumeConfigOf) },
    ...(nic === undefined ? {} : { network: network.guestNetworkOf(nic) }),
    ...authorityOf(instance),
  }
}

/** Where there are no credentials it vouches for no one. */
const authorityOf = ({ egress }: Instance): Pick<GuestConfig, 'authority'> =>
  egress === undefined || Object.keys(egress.credentials).length === 0 ? {} : { authority: egress.authority.certificate }

/** What was asked for, real values left out; where it goes out by a proxy, the way there, unless other words were asked for. */
function variablesOf({ env, egress }: Instance, proxyAddress: string): Readonly<Record<string, string>> {
  if (egress === undefined) return env
  const proxy = `http://${proxyAddress}:${PROXY_PORT}`
  // Both ways of writing them: each program knows its own.
  return {
    ...{ HTTP_PROXY: proxy, HTTPS_PROXY: proxy, NO_PROXY: NOT_BY_PROXY },
    ...{ http_proxy: proxy, https_proxy: proxy, no_proxy: NOT_BY_PROXY },
    // Node heeds them only then (24, cli.md).
    NODE_USE_ENV_PROXY: '1',
    ...guestVariablesOf(env, egress.credentials),
  }
}

export const volumeConfigOf = (attachment: Attachment): GuestConfig['disks']['volumes'][number] => ({
  serial: volumeRole(attachment),
  mountPath: attachment.mountPath,
  readOnly: attachment.readOnly && attachment.overlayBytes === undefined,
  fs: 'ext4',
  ...(attachment.overlayBytes === undefined ? {} : { roomBytes: attachment.overlayBytes }),
})

/** By what a guest is told from its kin: all that a fork's differs in from what it was made of. */
export function guestIdentityOf(instance: Instance, network: Pick<Network, 'guestNetworkOf'>): NonNullable<WakeRequest['identity']> {
  const nic = nicOf(instance)
  const { id, name } = instance
  return { hostname: name, machineId: machineIdOf(id), ...(nic === undefined ? {} : { network: network.guestNetworkOf(nic) }) }
}

/** The program and its arguments. As with Docker, an entrypoint of one's own leaves the image's arguments out. */
export function argvOf(
  overrides: Pick<Instance, 'entrypoint' | 'cmd'>,
  image: { readonly entrypoint: readonly string[]; readonly cmd: readonly string[] },
): string[] {
  const entrypoint = overrides.entrypoint ?? image.entrypoint
  const cmd = overrides.cmd ?? (overrides.entrypoint === undefined ? image.cmd : [])
  return [...entrypoint, ...cmd]
}

/** machine-id(5): 32 hex digits. The same for one instance for ever. */
const machineIdOf = (id: string): string => createHash('sha256').update(`machine-id ${id}`).digest('hex').slice(0, 32)

const pairsOf = (env: readonly string[]): Record<string, string> =>
  Object.fromEntries(
    env.map((entry) => {
      const at = entry.indexOf('=')
      return at < 0 ? [entry, ''] : [entry.slice(0, at), entry.slice(at + 1)]
    }),
  )
