/** Names, tags and ids as the API takes them: the same rules in the daemon, the CLI and the console. */
import { type Static, Type } from 'typebox'

export const NAME_PATTERN = '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'
export const NAME_MAX = 63
const NAME = new RegExp(NAME_PATTERN)

export const Name = Type.String({
  pattern: NAME_PATTERN,
  minLength: 1,
  maxLength: NAME_MAX,
  description: 'Lower-case letters, digits and dashes, at most 63, no dash at either end',
})

export const isName = (text: string): boolean => text.length <= NAME_MAX && NAME.test(text)

const TAG_ALPHABET = 'A-Za-z0-9 _.:/=+@-'
export const TAGS_MAX = 50
const TagKey = Type.String({ pattern: `^[${TAG_ALPHABET}]{1,128}$` })
const TagValue = Type.String({ pattern: `^[${TAG_ALPHABET}]{0,256}$` })

export const Tags = Type.Record(TagKey, TagValue, {
  $id: 'Tags',
  additionalProperties: false,
  maxProperties: TAGS_MAX,
  description: 'Up to 50 key-value pairs of your own; keys to 128 characters, values to 256, of letters, digits, space and _.:/=+@-',
})
export type Tags = Static<typeof Tags>

/** Do `tags` hold every pair of `wanted`? */
export const matchesTags = (tags: Readonly<Record<string, string>>, wanted: Readonly<Record<string, string>>): boolean =>
  Object.entries(wanted).every(([key, value]) => Object.hasOwn(tags, key) && tags[key] === value)

export const DateTime = Type.String({ format: 'date-time', description: 'RFC 3339, UTC' })
export const nullable = <T extends Parameters<typeof Type.Union>[0][number]>(schema: T) => Type.Union([schema, Type.Null()])

/** `docker.io/library/alpine:latest`; what exactly is a reference is judged by the images room. */
export const ImageName = Type.String({ minLength: 1, maxLength: 512, description: 'An OCI image reference: name, name:tag or name@digest' })

/** A guest's environment. Names as the kernel takes them: anything but `=` and NUL. */
const EnvName = Type.String({ pattern: '^[^=\\u0000]{1,256}$' })
const EnvValue = Type.String({ maxLength: 131_072, pattern: '^[^\\u0000]*$' })
const envRules = { additionalProperties: false, maxProperties: 1000 } as const
export const Env = Type.Record(EnvName, EnvValue, {
  ...envRules,
  description: 'Environment variables; a name is not empty and has no = in it',
})
export type Env = Static<typeof Env>
export const EnvChange = Type.Record(EnvName, EnvValue, {
  ...envRules,
  minProperties: 1,
  description: 'Merged into the environment; counts from the next start on, and for credentials at once',
})

export const PLATFORM_PATTERN = '^[a-z0-9]+/[a-z0-9]+(/[a-z0-9.]+)?$'
export const Platform = Type.String({
  pattern: PLATFORM_PATTERN,
  maxLength: 64,
  description: 'os/arch or os/arch/variant, such as linux/amd64',
})

export const ByteSize = Type.String({ maxLength: 32, description: 'A size such as 512MB, 1.5GB or 4096; units are powers of 1024' })
export const Rate = Type.String({ maxLength: 32, description: 'A rate such as 100MB/s' })
export const Bandwidth = Type.String({ maxLength: 32, description: 'A rate such as 1Gbps (decimal bits) or 125MB/s' })
export const Duration = Type.String({ maxLength: 64, description: 'A duration such as 90s, 1.5h or 2h45m' })
