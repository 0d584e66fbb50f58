import { parseObject } from './manifest.ts'
import type { Platform } from './platform.ts'
import { invalidImage } from './tar-entry.ts'

/** What an image says about how to run it. */
export interface ImageConfig {
  readonly entrypoint: readonly string[]
  readonly cmd: readonly string[]
  /** `NAME=value`, the last of a name winning. */
  readonly env: readonly string[]
  readonly workingDir: string
  readonly user: string
  /** A name such as `SIGTERM`, or a number; empty when the image names none. */
  readonly stopSignal: string
  /** `80/tcp`. */
  readonly exposedPorts: readonly string[]
}

export interface ParsedConfig {
  readonly platform: Platform | undefined
  /** sha256 of each layer as it is uncompressed, from the bottom. */
  readonly diffIds: readonly string[]
  readonly createdAtMs: number | undefined
  readonly config: ImageConfig
}

// What execve takes of arguments and environment (128 KiB for one string) is more than any image needs.
const MAX_STRINGS = 4096
const MAX_STRING = 128 * 1024
const MAX_PORTS = 1000

/** Parses a configuration blob. Throws `invalid_image` for what is malformed, beyond limits, or could not be given to a program. */
export function parseImageConfig(bytes: Buffer): ParsedConfig {
  const document = parseObject(bytes, 'configuration')
  const { os, architecture, variant, rootfs, created } = document
  const config = (typeof document.config === 'object' && document.config !== null ? document.config : {}) as Record<string, unknown>
  const diffIds = strings((rootfs as { diff_ids?: unknown } | undefined)?.diff_ids, 'diff_ids')
  if (diffIds.some((id) => !/^sha256:[0-9a-f]{64}$/.test(id)))
    throw invalidImage("The image's configuration has a diff id that is no sha256 digest")
  const createdAtMs = typeof created === 'string' ? Date.parse(created) : Number.NaN
  const workingDir = text(config.WorkingDir, 'WorkingDir')
  const env = strings(config.Env, 'Env')
  if (env.some((pair) => pair.indexOf('=') < 1)) throw invalidImage("The image's configuration has a variable without a name or a value")
  const stopSignal = text(config.StopSignal, 'StopSignal')
  if (stopSignal !== '' && !/^(?:SIG)?[A-Z0-9+-]{1,16}$/i.test(stopSignal))
    throw invalidImage("The image's configuration has a StopSignal that is none")
  const ports = typeof config.ExposedPorts === 'object' && config.ExposedPorts !== null ? Object.keys(config.ExposedPorts) : []
  return {
    platform:
      typeof os === 'string' && os !== '' && typeof architecture === 'string' && architecture !== ''
        ? {
            os: os.slice(0, 64),
            architecture: architecture.slice(0, 64),
            ...(typeof variant === 'string' && variant !== '' ? { variant: variant.slice(0, 64) } : {}),
          }
        : undefined,
    diffIds,
    createdAtMs: Number.isFinite(createdAtMs) ? createdAtMs : undefined,
    config: {
      entrypoint: strings(config.Entrypoint, 'Entrypoint'),
      cmd: strings(config.Cmd, 'Cmd'),
      env,
      workingDir: workingDir === '' ? '/' : workingDir.startsWith('/') ? workingDir : `/${workingDir}`,
      user: text(config.User, 'User'),
      stopSignal,
      exposedPorts: ports.filter((port) => /^\d{1,5}(?:\/(?:tcp|udp|sctp))?$/.test(port)).slice(0, MAX_PORTS),
    },
  }
}

/** A list of strings, or one string (which some tools write); absent and null are empty. */
function strings(value: unknown, what: string): string[] {
  if (value === undefined || value === null) return []
  const all = typeof value === 'string' ? [value] : value
  if (!Array.isArray(all) || all.length > MAX_STRINGS) throw malformed(what)
  return all.map((item) => checked(item, what))
}

const text = (value: unknown, what: string): string => (value === undefined || value === null ? '' : checked(value, what))

function checked(value: unknown, what: string): string {
  if (typeof value !== 'string' || value.length > MAX_STRING || value.includes('\0')) throw malformed(what)
  return value
}

const malformed = (what: string): Error => invalidImage(`The image's configuration has a malformed ${what}`)
