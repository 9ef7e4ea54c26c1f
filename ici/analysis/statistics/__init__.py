"""What a handful of seeds says: intervals, differences, time to an event, profiles."""

from ici.analysis.statistics.effects import Effect as Effect
from ici.analysis.statistics.effects import holm as holm
from ici.analysis.statistics.effects import paired_effect as paired_effect
from ici.analysis.statistics.effects import seeds_needed as seeds_needed
from ici.analysis.statistics.effects import unpaired_effect as unpaired_effect
from ici.analysis.statistics.intervals import Interval as Interval
from ici.analysis.statistics.intervals import bootstrap_interval as bootstrap_interval
from ici.analysis.statistics.intervals import interquartile_mean as interquartile_mean
from ici.analysis.statistics.intervals import mean_interval as mean_interval
from ici.analysis.statistics.intervals import proportion_interval as proportion_interval
from ici.analysis.statistics.intervals import stratified_interval as stratified_interval
from ici.analysis.statistics.profiles import performance_profile as performance_profile
from ici.analysis.statistics.profiles import profile_score as profile_score
from ici.analysis.statistics.survival import Survival as Survival
from ici.analysis.statistics.survival import kaplan_meier as kaplan_meier
from ici.analysis.statistics.survival import logrank as logrank
from ici.analysis.statistics.survival import restricted_mean as restricted_mean
