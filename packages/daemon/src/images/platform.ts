import { arch } from 'node:process'
import { AppError } from '@dormouse/api/errors.ts'

export interface Platform {
  readonly os: string
  readonly architecture: string
  readonly variant?: string
}

/** What guests can be. */
export const SUPPORTED_PLATFORMS: readonly string[] = ['linux/amd64', 'linux/arm64']
const PATTERN = /^([a-z0-9]+)\/([a-z0-9]+)(?:\/([a-z0-9.]+))?$/

/** Throws `invalid_platform` for what is malformed or what no guest could run. */
export function parsePlatform(text: string): Platform {
  const [, os = '', architecture = '', variant] = PATTERN.exec(text) ?? []
  if (!SUPPORTED_PLATFORMS.includes(`${os}/${architecture}`)) {
    throw new AppError(
      'invalid_platform',
      `${JSON.stringify(text.slice(0, 100))} is no platform that is supported: ${SUPPORTED_PLATFORMS.join(', ')}`,
    )
  }
  return { os, architecture, ...(variant === undefined ? {} : { variant }) }
}

export const hostPlatform = (): Platform => ({ os: 'linux', architecture: arch === 'x64' ? 'amd64' : arch })

/** Without the variant: what images are kept and found by. */
export const formatPlatform = (platform: Platform): string => `${platform.os}/${platform.architecture}`

/**
 * How well an offer fits: 0 not at all, more is better. Without a variant asked for, the one that runs everywhere is best; a higher
 * one (amd64/v3) may need what the guest's CPU does not have, and comes last.
 */
export function fitOf(offer: Platform, wanted: Platform): number {
  if (offer.os !== wanted.os || offer.architecture !== wanted.architecture) return 0
  const basic = wanted.architecture === 'arm64' ? 'v8' : 'v1'
  const offered = offer.variant ?? basic
  if (offered === (wanted.variant ?? basic)) return 3
  return offered === basic ? 2 : 1
}
