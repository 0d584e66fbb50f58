import { Type } from 'typebox'
import { AuditEntry, AuditResult } from '../audit.ts'
import { Capabilities, Health } from '../capabilities.ts'
import { Event } from '../events.ts'
import { DiskUsage, PruneRequest, PruneResponse } from '../garbage.ts'
import { MemoryReclaimRequest, MemoryReclaimResponse, Resources } from '../resources.ts'
import {
  CreateTicketRequest,
  CreateTokenRequest,
  RevokeTokensRequest,
  RevokeTokensResponse,
  Ticket,
  Token,
  TokenRecord,
} from '../tokens.ts'
import { page, plainId, strict } from './params.ts'
import type { Route } from './route.ts'

export const serverRoutes = {
  getHealth: {
    tag: 'server',
    summary: 'Is the daemon there',
    scope: 'open',
    status: 200,
    answer: Health,
  },
  getCapabilities: {
    tag: 'server',
    summary: 'What this server can do, and why not more',
    scope: 'resource:read',
    status: 200,
    answer: Capabilities,
  },
  getResources: {
    tag: 'server',
    summary: 'What the host has, what is given away, what is left',
    scope: 'resource:read',
    status: 200,
    answer: Resources,
  },
  reclaimMemory: {
    tag: 'server',
    summary: 'Give memory of the host back that VMs do not need right now; guests go on with what they have',
    scope: 'instance:write',
    body: MemoryReclaimRequest,
    status: 200,
    answer: MemoryReclaimResponse,
    errors: ['conflict'],
  },
  followEvents: {
    tag: 'server',
    summary: 'Follow what happens to all that the token may read; goes on after the event named in Last-Event-ID',
    scope: 'any',
    query: Type.Object(
      {
        after: Type.Optional(Type.Integer({ minimum: 0, description: 'Begin after this event; without it, with the next one' })),
        subject: Type.Optional(
          Type.String({
            maxLength: 512,
            description:
              'Only events about this instance, volume, device or image, by its id or by the name that it has when the stream begins',
          }),
        ),
      },
      strict,
    ),
    status: 200,
    answer: Event,
    stream: 'sse',
  },
  createToken: {
    tag: 'server',
    summary: 'Make a token; only over the unix socket',
    scope: 'host',
    body: CreateTokenRequest,
    bodyOptional: true,
    status: 201,
    answer: Token,
    errors: ['invalid_ttl'],
  },
  getMetrics: {
    tag: 'server',
    summary: 'Figures for Prometheus',
    scope: 'resource:read',
    status: 200,
    stream: 'text',
  },
  listTokens: {
    tag: 'server',
    summary: 'List the tokens that were made here and have not expired, newest first; only over the unix socket',
    scope: 'host',
    query: Type.Object(page, strict),
    status: 200,
    answer: Type.Array(TokenRecord),
  },
  revokeToken: {
    tag: 'server',
    summary: 'Revoke a token: from the next request on it is refused, and its streams end; only over the unix socket',
    scope: 'host',
    params: plainId,
    status: 204,
    errors: ['not_found'],
  },
  revokeTokens: {
    tag: 'server',
    summary: 'Revoke every token of a subject that was issued before a moment, also those made elsewhere; only over the unix socket',
    scope: 'host',
    body: RevokeTokensRequest,
    status: 200,
    answer: RevokeTokensResponse,
  },
  createTicket: {
    tag: 'server',
    summary: 'Make a ticket: what a browser, which can send no header with it, opens one stream with, once, within 30 seconds',
    scope: 'any',
    body: CreateTicketRequest,
    status: 201,
    answer: Ticket,
    errors: ['not_found'],
  },
  listAudit: {
    tag: 'server',
    summary: 'List who changed what, and who was refused, newest first',
    scope: 'audit:read',
    query: Type.Object(
      {
        caller: Type.Optional(Type.String({ maxLength: 128, description: 'Subject of a token, or host' })),
        operation: Type.Optional(Type.String({ maxLength: 64, description: 'Such as stopInstance' })),
        target: Type.Optional(
          Type.String({ maxLength: 1024, description: 'Name or id of the thing itself, as it stood first in the path or in the answer' }),
        ),
        result: Type.Optional(AuditResult),
        since: Type.Optional(Type.String({ maxLength: 64, format: 'date-time', description: 'Not before' })),
        until: Type.Optional(Type.String({ maxLength: 64, format: 'date-time', description: 'Before' })),
        limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: 100 })),
        cursor: page.cursor,
      },
      strict,
    ),
    status: 200,
    answer: Type.Array(AuditEntry),
  },
  getDiskUsage: {
    tag: 'server',
    summary: 'What takes how much of the disk, what of it is shared, and what could go',
    scope: 'resource:read',
    status: 200,
    answer: DiskUsage,
  },
  prune: {
    tag: 'server',
    summary: 'Give up what can be missed on the disk',
    scope: 'resource:write',
    body: PruneRequest,
    bodyOptional: true,
    status: 200,
    answer: PruneResponse,
  },
} as const satisfies Readonly<Record<string, Route>>
