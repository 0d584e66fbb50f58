import type { Image } from '@dormouse/api/images.ts'
import type { ImageNameRow, ImageRow } from '../store/images.ts'
import { parseImageConfig } from './image-config.ts'

/** A name and the image that it leads to, as the API shows them. */
export function presentImage(name: ImageNameRow, image: ImageRow, queuePosition: number | undefined): Image {
  const { config } = parseImageConfig(image.config)
  const env = envOf(config.env)
  return {
    name: name.name,
    digest: image.digest,
    status: image.status,
    created_at: new Date(name.createdAtMs).toISOString(),
    platform: image.platform,
    queue_position: queuePosition ?? null,
    error: image.error ?? null,
    size_bytes: image.rootfsBytes ?? null,
    entrypoint: config.entrypoint.length > 0 ? [...config.entrypoint] : null,
    cmd: config.cmd.length > 0 ? [...config.cmd] : null,
    working_dir: config.workingDir,
    ...(Object.keys(env).length > 0 ? { env } : {}),
    ...(Object.keys(name.tags).length > 0 ? { tags: { ...name.tags } } : {}),
  }
}

function envOf(pairs: readonly string[]): Record<string, string> {
  const entries = pairs.map((pair): [string, string] => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)])
  // fromEntries defines, so that a variable called __proto__ is one like any other.
  return Object.fromEntries(entries)
}
