/** One row of the route table. */
import type { TSchema } from 'typebox'
import type { ErrorCode } from '../errors.ts'
import type { Scope } from '../tokens.ts'

export interface Route {
  readonly tag: string
  readonly summary: string
  /** What a token must allow. `any` takes every token that holds; `open` asks for none; `host` is for the unix socket alone. */
  readonly scope: Scope | 'any' | 'open' | 'host'
  readonly params?: TSchema
  readonly query?: TSchema
  readonly body?: TSchema
  /** Without a body the request means `{}`. */
  readonly bodyOptional?: true
  /** Media types of a raw body, which is streamed and not held. */
  readonly rawBody?: readonly string[]
  readonly status: 101 | 200 | 201 | 202 | 204
  readonly answer?: TSchema
  /** Headers that an answer has beside those that all have, and what they say. */
  readonly headers?: Readonly<Record<string, string>>
  /** `sse`: `answer` is what each data line holds, as JSON. */
  readonly stream?: 'sse' | 'websocket' | 'text'
  /** Beside those that every route may give. */
  readonly errors?: readonly ErrorCode[]
  /** Those of them that are 400 here, because what was asked for cannot be, while elsewhere they are a conflict. */
  readonly badRequests?: readonly ErrorCode[]
  /** Those of them that are 409 here, because it is about how things stand, while elsewhere the request is at fault. */
  readonly conflicts?: readonly ErrorCode[]
  /** Part of the contract, but answered by 501 `not_supported` with this sentence until it is built. */
  readonly later?: string
}
